"""Whether the run in a folder is the one that is asked for, and what may change on its way."""

import difflib
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import config as configs
from ssd_jax import experiment
from ssd_jax.config import CONFIG_FILE
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.network import build_network
from ssd_jax.report.starts import data_of_last_start, record_start

# Settings that change how a run is computed and told, but not what comes out of it.
HARDWARE = ("sharding", "data.cache", "data.threads", "data.doctor", "log_every_steps",
            "checkpoint.every_steps", "checkpoint.keep_latest", "evaluate.batch_size",
            "watchdog.factor", "watchdog.minimum_seconds", "watchdog.first_seconds")  # fmt: skip

# Settings, and groups of them, that no run can change on its way, and why.
FIXED = {
    "recipe": "it is what the whole run is compared with",
    "seed": "the order of the images comes from it",
    "batch_size": "the place in the data is step times batch_size",
    "model": "it makes another network",
    "anchors": "the heads are trained for these anchors",
    "preprocess": "the network would see other values",
    "weights": "they are read before the first step only",
    "data.train": "it is the data of the run",
    "data.val": "the best checkpoint is chosen by it",
    "data.classes": "the heads are trained for these classes",
    "data.canvas": "the network would see other pictures",
    "evaluate.metric": "the best checkpoint is chosen by it",
    "evaluate.iou_threshold": "the best checkpoint is chosen by it",
}


class Change(NamedTuple):
    """The two values of a setting."""

    was: Any
    now: Any


def has_trained(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint behind step 0, which is that of imported weights."""
    names = (path.name for path in workdir.glob("checkpoints/[0-9]*"))
    return any(name.isdigit() and int(name) for name in names)


def changed_settings(
    config: ConfigDict, path: pathlib.Path, *, free: Collection[str] = HARDWARE
) -> str:
    """What differs from the config in the file, but for what is `free`; "" if nothing does."""
    return "; ".join(told(find_changes(config, path, free=free)))


def find_changes(
    config: ConfigDict, path: pathlib.Path, *, free: Collection[str]
) -> dict[str, Change]:
    """The settings that are not as in the file, but for those that are `free`."""
    before = dict(configs.flat_items(configs.read_config(path)))
    return {
        name: Change(before[name], value)
        for name, value in configs.flat_items(config)
        if before[name] != value and name not in free
    }


def told(changes: Mapping[str, Change]) -> Iterator[str]:
    """Each change in words, with the reason why it cannot be, if there is one."""
    for name, (was, now) in changes.items():
        reason = _why_fixed(name)
        yield f"config.{name} was {was!r} and is now {now!r}" + (f" ({reason})" if reason else "")


def settle_config(
    config: ConfigDict,
    workdir: pathlib.Path,
    sources: dict[str, Source],
    *,
    mesh: Mesh,
    change: Collection[str] = (),
) -> dict[str, Change]:
    """The settings that change from here on; {} for a new run. `change` names those that may.

    Raises:
      UserError: the run in the folder is another one, and in what.
    """
    _check_names(config, change)
    path = workdir / CONFIG_FILE
    if not (path.is_file() and any(workdir.glob("checkpoints/[0-9]*"))):
        if change:
            raise UserError(
                f"--change: there is no run in {workdir} whose settings could change. Give its "
                "folder as --workdir, or leave --change out."
            )
        return {}
    before = data_of_last_start(workdir)
    # The same data may lie elsewhere by now.
    free = {*HARDWARE, *(f"data.{split}.root" for split in before)}
    changes = find_changes(config, path, free=free)
    if refused := {n: c for n, c in changes.items() if n not in change or _why_fixed(n)}:
        named = (
            ""
            if any(map(_why_fixed, refused))
            else f"add --change {','.join(changes)} to have it so from here on, "
        )
        raise UserError(
            f"{workdir}: the run there was started with another config: {'; '.join(told(refused))}."
            f" Go on with the same one, {named}or choose another --workdir, and with it "
            f"--config.weights.path={workdir} to begin with the weights of this run."
        )
    for split, source in sources.items():
        if source.fingerprint != before.get(split, source.fingerprint):
            raise UserError(
                f"{workdir}: the run there was started with other data: the annotations of "
                f"{split} have the fingerprint {source.fingerprint}, and had {before[split]}. "
                "Go on with the same data, or choose another --workdir."
            )
    _check_state(config, changes, sources["train"], mesh)
    return changes


def note(
    config: ConfigDict,
    workdir: pathlib.Path,
    sources: Mapping[str, Source],
    weights: dict[str, Any] | None,
    changes: Mapping[str, Change],
    *,
    step: int,
    is_start: bool,
) -> None:
    """Writes config.json; the start comes first, so that no change is without its record."""
    if is_start:
        data = {name: each.fingerprint for name, each in sources.items()}
        record_start(workdir, step=step, weights=weights, data=data, changes=changes)
    configs.save_config(config, workdir / CONFIG_FILE)


def describe_changes(
    config: ConfigDict, changes: Mapping[str, Change], *, images: int, step: int
) -> list[str]:
    """Lines for the log of a run that goes on at `step` with other settings."""
    if not changes:
        return []
    lines = [f"from here on: {each}" for each in told(changes)]
    rates = [
        float(experiment.build_schedule(each, images)(step))
        for each in (_former(config, changes), config)
    ]
    if rates[0] != rates[1]:
        # A schedule that counts the end of a run may rise again where the end is moved.
        lines.append(f"the learning rate at step {step} was {rates[0]:.3g}, and is {rates[1]:.3g}")
    return lines + [f"warning: {each}" for each in experiment.schedule_warnings(config, images)]


def _check_names(config: ConfigDict, change: Collection[str]) -> None:
    known = [name for name, _ in configs.flat_items(config)]
    for name in change:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(f"--change: got {name!r}, which is no setting. The nearest is {near}.")


def _why_fixed(name: str) -> str:
    """Why a setting cannot change on the way; "" if it can."""
    return next((why for each, why in FIXED.items() if f"{name}.".startswith(f"{each}.")), "")


def _former(config: ConfigDict, changes: Mapping[str, Change]) -> ConfigDict:
    """The config before the changes."""
    former = configs.default_config()
    before = {name: change.was for name, change in changes.items()}
    former.update_from_flattened_dict(dict(configs.flat_items(config)) | before)
    return former


def _check_state(
    config: ConfigDict, changes: Mapping[str, Change], source: Source, mesh: Mesh
) -> None:
    """Refuses changes after which what the optimizer remembers would be of another shape."""
    of_optimizer = {name: each for name, each in changes.items() if name.startswith("optimizer.")}
    network = build_network(config, len(source.classes))

    def structure(config):
        schedule = experiment.build_schedule(config, len(source))
        optimizer = experiment.build_optimizer(config, schedule)
        state = experiment.build_state_shapes(config, network, optimizer, mesh)
        return jax.tree.structure(state)

    if of_optimizer and structure(config) != structure(_former(config, changes)):
        raise UserError(
            f"--change: {'; '.join(told(of_optimizer))}: what the optimizer remembers of the "
            "steps before would be of another shape. Leave its kind as it was, or choose another "
            "--workdir and begin with the weights of this run (config.weights.path)."
        )
