"""Orbax's reading of trees of which not all is known, and its logging."""

import logging
import pathlib
from typing import Any

import absl.logging
import jax
import orbax.checkpoint as ocp
from jax.tree_util import keystr


def restore_part(folder: pathlib.Path, like: Any) -> Any:
    """The part of the tree that `like` has, with its shapes and shardings."""
    args = ocp.args.PyTreeRestore(
        like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder, args)


def find_misfit(folder: pathlib.Path, like: Any) -> str:
    """The first array of `like` that the stored tree does not have in its shape; "" if none."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = _shapes(reader.metadata(folder).item_metadata.tree)
    for name, shape in _shapes(like).items():
        if stored.get(name) != shape:
            return f"{name} is {stored.get(name, 'missing')} there, expected {shape}"
    return ""


def quieten_orbax() -> None:
    """Keeps Orbax, and nobody else, from logging failures, which it raises as well."""
    absl.logging.get_absl_logger().addFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if getattr(leaf, "shape", None) is not None
    }
