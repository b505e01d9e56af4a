"""A step that is not finite: what is recorded about it, and what can be done."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ssd_jax.cluster import exchange
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.files import write_json
from ssd_jax.train.checkpoint_manifest import has_trained
from ssd_jax.train.state import TrainState

NONFINITE_FILE = "nonfinite.json"
# The files of all processes.
NONFINITE_FILES = "nonfinite*.json"


def divergence(
    step: int,
    names: Sequence[str],
    values: Mapping[str, float],
    state: TrainState,
    *,
    workdir: pathlib.Path,
    source: Source,
    learning_rate: float,
    clip_norm: float | None,
) -> UserError:
    """The error that ends a run if some of the `values` of `step` are not finite.

    Writes nonfinite.json with the images of the batch. In a run of several processes each writes
    its own file, and the message names the images of all. `state` is the newest one, of the same
    step or a little later. All processes must call this, because its parameters may be sharded over
    all of them.
    """
    groups = not_finite_groups(state.params)
    # Exchanged before anything is written, which may fail on one process.
    everyones = [name for each in exchange(list(names)) for name in each]
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
    broken = ", ".join(name for name, count in groups.items() if count) or "none"
    return UserError(
        f"step {step}: {_listed(values, finite=False)}, so training stops "
        f"({_listed(values, finite=True)}; parameters that are not finite after step "
        f"{int(state.step)}: {broken}). Images of the batch: {', '.join(everyones)}. "
        f"{_what_helps(workdir, learning_rate, clip_norm)}, and look at these images and their "
        f"boxes in {_files(workdir)}; the end of metrics.jsonl has the steps before."
    )


def _listed(values: Mapping[str, float], *, finite: bool) -> str:
    listed = (f"{name} {each:g}" for name, each in values.items() if math.isfinite(each) == finite)
    return ", ".join(listed) or "nothing is finite"


def _files(workdir: pathlib.Path) -> str:
    several = jax.process_count() > 1
    further = " (of the other processes: nonfinite_process_N.json)" if several else ""
    return f"{workdir / NONFINITE_FILE}{further}"


def _what_helps(workdir: pathlib.Path, learning_rate: float, clip_norm: float | None) -> str:
    """Advice, with the options for a new run or for one that is resumed from a checkpoint."""
    trained = has_trained(workdir)

    def options(name, value):
        return f"--config.{name}={value:g}" + (f" --change {name}" if trained else "")

    lower = f"Lower the learning rate ({options('optimizer.learning_rate', learning_rate / 10)})"
    clip = options("optimizer.clip_norm", 10)
    return lower if clip_norm else f"{lower} or clip the gradient ({clip})"


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
    """NaN and infinities as text: JSON has no such numbers, and null would not say which it was."""
    return value if math.isfinite(value) else str(value)


def _annotated(source: Source, name: str) -> dict[str, Any]:
    """The annotation of an image; if its size is unknown, boxes are fractions of its sides."""
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
