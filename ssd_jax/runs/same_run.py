"""Whether the run in a folder is the requested one, and which of its settings may change."""

import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import config as configs
from ssd_jax import experiment
from ssd_jax.config import CONFIG_FILE
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import AnotherRun, UserError, nearest
from ssd_jax.network import build_network
from ssd_jax.recipes import HARDWARE
from ssd_jax.report.starts import (
    data_of_last_start,
    images_of_last_start,
    own_of_last_start,
    record_start,
)
from ssd_jax.runs.log import CHECKPOINTS_FOLDER
from ssd_jax.train.checkpoint_manifest import saved_steps
from ssd_jax.train.divergence import NONFINITE_FILES
from ssd_jax.train.hooks import Hooks

# Settings, and groups of them, that cannot change once a run has begun, and why.
FIXED = {
    "recipe": "the whole run is compared with it",
    "seed": "the order of the images comes from it",
    "batch_size": "the position in the data is step times batch_size",
    "model": "it would be another network",
    "anchors": "the heads are trained for these anchors",
    "preprocess": "the network would see other values",
    "weights": "they are read only before the first step",
    "data.train": "it is the data of the run",
    "data.val": "the best checkpoint is chosen by it",
    "data.classes": "the heads are trained for these classes",
    "data.canvas": "the network would see other images",
    "evaluate.metric": "the best checkpoint is chosen by it",
    "evaluate.iou_threshold": "the best checkpoint is chosen by it",
}


# Where the data lie, which may be written as a relative path.
DATA_ROOTS = ("data.train.root", "data.val.root", "data.test.root")
# Functions that can replace the config's; a run records their names.
OWN = Hooks._fields


class Change(NamedTuple):
    """The two values of a setting."""

    was: Any
    now: Any


def changed_settings(config: ConfigDict, path: pathlib.Path) -> str:
    """The differences from the config in the file, except for HARDWARE; "" if there are none."""
    changes = find_changes(config, path, free=HARDWARE)
    for name in changes.keys() & set(DATA_ROOTS):
        was, now = changes[name]
        if was and now and os.path.abspath(was) == os.path.abspath(now):
            del changes[name]
    return "; ".join(in_words(changes))


def find_changes(
    config: ConfigDict, path: pathlib.Path, *, free: Collection[str]
) -> dict[str, Change]:
    """The settings that differ from the file, except for those in `free`."""
    before = dict(configs.flat_items(configs.read_config(path)))
    return {
        name: Change(before[name], value)
        for name, value in configs.flat_items(config)
        if before[name] != value and name not in free
    }


def in_words(changes: Mapping[str, Change]) -> Iterator[str]:
    """Each change as text, with the reason why it is not allowed, if there is one."""
    for name, (was, now) in changes.items():
        if name in OWN:
            was, now = (each or f"that of config.{name}" for each in (was, now))
            yield f"{name} was {was} and is now {now}"
            continue
        reason = _why_fixed(name)
        yield f"config.{name} was {was!r} and is now {now!r}" + (f" ({reason})" if reason else "")


def allowed_changes(
    config: ConfigDict,
    workdir: pathlib.Path,
    change: Collection[str] = (),
    *,
    own: Mapping[str, str | None] = MappingProxyType({}),
) -> dict[str, Change]:
    """The settings that change from here on; {} for a new run. `change` names those that may.

    `own` has the names of the functions that replace the config's; they are treated like settings.
    Needs no data: `check_goes_on` makes the checks that do.

    Raises:
      UserError: a name is not a setting; or the run in the folder is another one, with the
        differences.
    """
    _check_names(config, change)
    if not _can_go_on(workdir):
        if change:
            raise UserError(_nothing_to_change(workdir))
        return {}
    # The same data may have moved to another folder.
    free = {*HARDWARE, *(f"data.{split}.root" for split in data_of_last_start(workdir))}
    # Named settings are recorded, even those that could change without being named.
    free -= {name for name in change if not _why_fixed(name)}
    changes = find_changes(config, workdir / CONFIG_FILE, free=free)
    if (before := own_of_last_start(workdir)) is not None:
        pairs = {name: Change(before.get(name), own.get(name)) for name in OWN}
        changes |= {name: pair for name, pair in pairs.items() if pair.was != pair.now}
    if refused := {n: c for n, c in changes.items() if n not in change or _why_fixed(n)}:
        raise _another_config(workdir, changes, refused)
    return changes


def _can_go_on(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint, that of imported weights (step 0) included."""
    return (workdir / CONFIG_FILE).is_file() and bool(saved_steps(workdir / CHECKPOINTS_FOLDER))


def _nothing_to_change(workdir: pathlib.Path) -> str:
    if (workdir / CONFIG_FILE).is_file():
        return (
            f"--change: the run in {workdir} has no checkpoint yet, so it starts from the "
            "beginning with the given settings. Leave --change out."
        )
    return (
        f"--change: there is no run in {workdir}, so there are no settings to change. Give the "
        "folder of a run as --workdir, or leave --change out."
    )


def _another_config(
    workdir: pathlib.Path, changes: Mapping[str, Change], refused: Mapping[str, Change]
) -> AnotherRun:
    named = (
        ""
        if any(map(_why_fixed, refused))
        else f"add --change {','.join(changes)} (in Python change={tuple(changes)}) to use the new "
        "values from here on, "
    )
    what = "config" if refused.keys() - set(OWN) else " and ".join(refused)
    return AnotherRun(
        f"{workdir}: the run there was started with another {what}: {'; '.join(in_words(refused))}",
        f"Resume with the same {what}, {named}or choose another --workdir, and add "
        f"--config.weights.path={workdir} to start with the weights of this run.",
        refused,
    )


def check_goes_on(
    config: ConfigDict,
    workdir: pathlib.Path,
    sources: Mapping[str, Source],
    changes: Mapping[str, Change],
    *,
    mesh: Mesh,
) -> None:
    """Refuses data and `changes` with which the run in the folder, if any, cannot be resumed.

    Raises:
      UserError: the data differ, or the optimizer's state would not fit.
    """
    if not _can_go_on(workdir):
        return
    data, images = data_of_last_start(workdir), images_of_last_start(workdir)
    if any(name.startswith("data.test.") for name in changes):
        for before in (data, images):
            before.pop("test", None)  # the change asks for other data
    for split, source in sources.items():
        for of, before, now in (
            ("annotations", data, source.fingerprint),
            ("images", images, source.image_fingerprint),
        ):
            if now and now != before.get(split, now):
                raise AnotherRun(
                    f"{workdir}: the run there was started with other data: the {of} of {split} "
                    f"have the fingerprint {now}, but had {before[split]}",
                    "Resume with the same data, or choose another --workdir.",
                )
    _check_state(config, changes, sources["train"], mesh)


def describe_unchanged(
    config: ConfigDict,
    change: Collection[str],
    changes: Mapping[str, Change],
    *,
    own: Mapping[str, str | None] = MappingProxyType({}),
) -> list[str]:
    """Lines for the log: settings named in `change` whose value is the same as before."""
    values = dict.fromkeys(OWN) | own | dict(configs.flat_items(config))
    return [f"--change {name}: already {values[name]!r}" for name in change if name not in changes]


def record_and_save(
    config: ConfigDict,
    workdir: pathlib.Path,
    sources: Mapping[str, Source],
    weights: dict[str, Any] | None,
    changes: Mapping[str, Change],
    *,
    own: Mapping[str, str | None],
    step: int,
    is_start: bool,
) -> None:
    """Writes config.json, after the record of the start, so that every change is recorded.

    Removes the files that an earlier start left about a step that was not finite.
    """
    if is_start:
        record_start(
            workdir,
            step=step,
            weights=weights,
            data={name: each.fingerprint for name, each in sources.items()},
            images={name: each.image_fingerprint for name, each in sources.items()},
            changes=changes,
            own=own,
        )
        for path in workdir.glob(NONFINITE_FILES):
            path.unlink(missing_ok=True)
    configs.save_config(config, workdir / CONFIG_FILE)


def describe_changes(
    config: ConfigDict, changes: Mapping[str, Change], *, images: int, step: int
) -> list[str]:
    """Lines for the log of a run that is resumed at `step` with other settings."""
    if not changes:
        return []
    lines = [f"from here on: {each}" for each in in_words(changes)]
    rates = [
        float(experiment.build_schedule(each, images)(step))
        for each in (_former(config, changes), config)
    ]
    if rates[0] != rates[1]:
        # If the end of the run moves, a schedule that depends on it may rise again.
        lines.append(
            f"the learning rate at step {step} was {rates[0]:.3g} and is now {rates[1]:.3g}"
        )
    return lines + [f"warning: {each}" for each in experiment.schedule_warnings(config, images)]


def _check_names(config: ConfigDict, change: Collection[str]) -> None:
    known = [*OWN, *(name for name, _ in configs.flat_items(config))]
    for name in change:
        if name not in known:
            raise UserError(
                f"--change: got {name!r}, which is not a setting. The nearest is "
                f"{nearest(name, known)}."
            )


def _why_fixed(name: str) -> str:
    """Why a setting cannot change in a run that has begun; "" if it can."""
    return next((why for each, why in FIXED.items() if f"{name}.".startswith(f"{each}.")), "")


def _former(config: ConfigDict, changes: Mapping[str, Change]) -> ConfigDict:
    """The config before the changes."""
    former = configs.default_config()
    before = {name: change.was for name, change in changes.items() if name not in OWN}
    former.update_from_flattened_dict(dict(configs.flat_items(config)) | before)
    return former


def _check_state(
    config: ConfigDict, changes: Mapping[str, Change], source: Source, mesh: Mesh
) -> None:
    """Refuses changes after which the optimizer's state would have another structure."""
    of_optimizer = {name: each for name, each in changes.items() if name.startswith("optimizer.")}
    if not of_optimizer:
        return
    network = build_network(config, len(source.classes))

    def structure(config):
        schedule = experiment.build_schedule(config, len(source))
        optimizer = experiment.build_optimizer(config, schedule)
        state = experiment.build_state_shapes(config, network, optimizer, mesh)
        return jax.tree.structure(state)

    if structure(config) != structure(_former(config, changes)):
        raise UserError(
            f"--change: {'; '.join(in_words(of_optimizer))}: the saved state of the optimizer "
            "would no longer fit. Leave it as it was, or choose another --workdir and start with "
            "the weights of this run (config.weights.path)."
        )
