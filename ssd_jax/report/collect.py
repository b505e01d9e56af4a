"""All that the folder of a run knows about it, as one value for a page or a comparison."""

import functools
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssd_jax.config import CONFIG_FILE, default_config, stored_settings
from ssd_jax.errors import UserError
from ssd_jax.recipes import recipe_changes
from ssd_jax.report.repeat import repeat_command, repeat_notes
from ssd_jax.report.starts import images_of_last_start, read_starts
from ssd_jax.run_log import DIVERGED, METRICS_FILE, REPORT_FILE, read_metrics
from ssd_jax.train.mirror import workdir_to_read

# A curve in report.json has no more points; metrics.jsonl has them all.
MOST_POINTS = 200
# Of the time of a run; more is worth doing something about.
MUCH_WAITING = 0.1


class Run(NamedTuple):
    """A run: its settings, the content of report.json, and every line of its metrics.

    `place` is where it lies, as that was given; `workdir` is the folder itself, or a copy of it.
    `unfinished` is "unfinished, step 300" for a run that has not finished, or goes on, else "".
    """

    name: str
    place: str
    workdir: pathlib.Path
    config: ConfigDict
    report: dict[str, Any]
    records: list[dict[str, Any]]
    unfinished: str = ""


def open_run(place: str | pathlib.Path) -> Run:
    """Reads the folder of a run, or what lies behind its URL; of any version.

    One that is still running, was stopped or has diverged is told by its last evaluation.
    """
    workdir = workdir_to_read(place, checkpoints=False)
    config = config_of_any_version(workdir / CONFIG_FILE)
    records = _records(workdir)
    report, unfinished = _last_report(config, workdir), ""
    if report is None:
        report = _report_so_far(config, workdir, records)
        diverged = "diverged at " if any(each["split"] == DIVERGED for each in records) else ""
        last_step = max((each["step"] for each in records), default=0)
        unfinished = f"unfinished, {diverged}step {last_step}"
    return Run(workdir.resolve().name, str(place), workdir, config, report, records, unfinished)


def _last_report(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any] | None:
    """The content of report.json, None where there is none or the run was started again since."""
    path = workdir / REPORT_FILE
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        told = report["how"]["starts"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: it is no report of a run, or a part of one ({error}). Copy the folder again, "
            "or remove the file to see what the other files tell."
        ) from error
    starts = read_starts(workdir)
    # Folders move, and older reports have no notes.
    report["how"] |= {
        "repeat": repeat_command(workdir),
        "repeat_notes": repeat_notes(config, starts),
    }
    return report if all(start in told for start in starts) else None


def _report_so_far(
    config: ConfigDict, workdir: pathlib.Path, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What report.json would say, as far as it is known before a run has finished."""
    evaluated = [record for record in records if record["split"] == "val"]
    last = evaluated[-1] if evaluated else {"step": 0}
    starts = read_starts(workdir)
    fingerprints = starts[-1].get("data", {}) if starts else {}
    return {
        "headline": f"map_{config.evaluate.metric}",
        "metrics": {k: value for k, value in last.items() if k.startswith(("map_", "ap_"))},
        "protocol": {
            "headline": "the last evaluation of the training",
            "split": "val",
            "fingerprint": fingerprints.get("val", ""),
            "image_fingerprint": images_of_last_start(workdir).get("val"),
        },
        "classes": [name.partition("/")[2] for name in last if name.startswith("ap_voc07/")],
        "step": last["step"],
        "seed": config.seed,
        "data": {split: {"fingerprint": value} for split, value in fingerprints.items()},
        **describe_run(config, workdir),
    }


def _records(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / METRICS_FILE
    return read_metrics(path) if path.is_file() else []


def config_of_any_version(path: pathlib.Path) -> ConfigDict:
    """The settings of a run to look at, also those that are unknown here.

    Those that the run did not have, because they came later, have today's defaults.
    """
    tree = default_config().to_dict()
    for name, value in stored_settings(path).items():
        *groups, last = name.split(".")
        functools.reduce(lambda group, key: group.setdefault(key, {}), groups, tree)[last] = value
    return ConfigDict(tree)


def describe_run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """What report.json says beside the metrics: settings, weights, curves, and how it was made.

    "how" is what may differ between two runs of the same outcome: machine, speed, memory.
    """
    records = _records(workdir)
    starts = read_starts(workdir)
    return {
        "config": config.to_dict(),
        "recipe_changes": recipe_changes(config),
        "weights": starts[0]["weights"] if starts else None,
        "curves": {
            "train": curve(records, "train", ("loss", "class_loss", "box_loss", "lr")),
            "val": curve(records, "val", ("map_voc07", "map_voc12", "map_coco")),
        },
        "how": {
            "repeat": repeat_command(workdir),
            "repeat_notes": repeat_notes(config, starts),
            "starts": starts,
            **speed(records),
        },
    }


def curve(
    records: Sequence[dict[str, Any]], split: str, names: Sequence[str]
) -> dict[str, list[int | float | None]]:
    """`step` and the named values of a split as columns, thinned to `MOST_POINTS`."""
    rows = [record for record in records if record["split"] == split]
    every = -(-len(rows) // MOST_POINTS) or 1
    # Counted from the end, so that the last point stays.
    rows = rows[::-1][::every][::-1]
    return {
        name: [row.get(name) for row in rows]
        for name in ("step", *names)
        if any(name in row for row in rows)
    }


def speed(records: Sequence[dict[str, Any]]) -> dict[str, int | float | None]:
    """Medians over the run, and the most memory that was in use."""
    rows = [record for record in records if record["split"] == "train"]

    def values(name):
        return [row[name] for row in rows if row.get(name) is not None]

    def summary(take, name):
        return take(values(name)) if values(name) else None

    return {
        "images_per_second": summary(statistics.median, "images_per_second"),
        "data_wait": summary(statistics.median, "data_wait"),
        "host_memory_gib": summary(max, "host_memory_gib"),
        "device_memory_gib": summary(max, "device_memory_gib"),
    }


def waiting_hint(records: Sequence[dict[str, Any]]) -> str:
    """What to do where the devices waited for pictures; "" where they hardly did."""
    waited = speed(records)["data_wait"] or 0.0
    if waited <= MUCH_WAITING:
        return ""
    return (
        f"{waited:.0%} of the time the devices waited for pictures, which are decoded anew in each "
        "epoch. Where they fit, --config.data.cache=ram or device keeps them (docs/data.md); "
        "--config.data.threads decodes with more threads where there are cores."
    )
