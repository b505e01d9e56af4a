"""When a step is not finite: what is left of it, and what can be done."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.files import write_json
from ssd_jax.train.state import TrainState

NONFINITE_FILE = "nonfinite.json"


def divergence(
    step: int,
    names: Sequence[str],
    values: Mapping[str, float],
    state: TrainState,
    *,
    workdir: pathlib.Path,
    source: Source,
    clip_norm: float | None,
) -> UserError:
    """The error that ends a run whose `step` gave `values`, of which some are not finite.

    Leaves nonfinite.json with the images of the batch; each process has its own. `state` is the one
    at hand, of the same step or a little later. All processes must come here, for its parameters
    may lie on all of them.
    """
    groups = not_finite_groups(state.params)
    number = jax.process_index()
    path = workdir / (f"nonfinite_process_{number}.json" if number else NONFINITE_FILE)
    write_json(
        path,
        {
            "step": step,
            "values": {name: _in_json(value) for name, value in values.items()},
            "parameters": {"after_step": int(state.step), "not_finite": groups},
            "images": [_annotated(source, name) for name in dict.fromkeys(names)],
        },
    )
    others = ", ".join(f"{name} {value:g}" for name, value in values.items() if name != "loss")
    broken = ", ".join(name for name, count in groups.items() if count) or "none"
    clip = "--config.optimizer.clip_norm=10, after a checkpoint with --change optimizer.clip_norm"
    clipping = "" if clip_norm else f" or clip the gradient ({clip})"
    return UserError(
        f"step {step}: the loss is {values['loss']:g}, so training stops ({others}; parameters "
        f"that are not finite after step {int(state.step)}: {broken}). The batch held "
        f"{', '.join(names)}. Lower the learning rate{clipping}, and look at these images and "
        f"their boxes, which {path} has; the end of metrics.jsonl has the steps before."
    )


def not_finite_groups(params: Any) -> dict[str, int]:
    """How many arrays of each top-level group hold a value that is not finite."""

    @jax.jit
    def counts(params):
        return {
            name: sum(~jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(group))
            for name, group in params.items()
        }

    return {name: int(count) for name, count in counts(params).items()}


def _in_json(value: float) -> float | str:
    """NaN and infinities as words: JSON has no such numbers, and which it is tells something."""
    return value if math.isfinite(value) else str(value)


def _annotated(source: Source, name: str) -> dict[str, Any]:
    """An image's annotation; without a known size, boxes are parts of its sides."""
    index = list(source.names).index(name)
    columns = source.annotations
    objects = slice(*columns.offsets[index : index + 2].tolist())
    height, width = columns.sizes[index].tolist()
    boxes = columns.boxes[objects].astype(float)
    return {
        "image": name,
        "place": source.locate(index),
        "height": height or None,
        "width": width or None,
        "boxes_xyxy_px" if height else "boxes_xyxy": (
            (boxes * [width, height, width, height]).round(2) if height else boxes
        ),
        "labels": [source.classes[label] for label in columns.labels[objects].tolist()],
        "difficult": columns.difficult[objects],
    }
