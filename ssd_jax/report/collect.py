"""All that is known about a run from its folder, as one value for a report or a comparison."""

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
from ssd_jax.runs.log import DIVERGED, METRICS_FILE, REPORT_FILE, read_metrics
from ssd_jax.train.mirror import workdir_to_read

# A curve in report.json has no more points; metrics.jsonl has them all.
MOST_POINTS = 200
# Parts of report.json that a page cannot do without.
USED = {"classes", "data", "headline", "metrics", "protocol", "step", "weights"}
# Share of the time of a run; if more was spent waiting, a hint is printed.
MUCH_WAITING = 0.1


class Run(NamedTuple):
    """A run: its settings, the content of report.json, and every line of its metrics.

    `place` is its path or URL as it was given; `workdir` is the folder itself, or a copy of it.
    `unfinished` is e.g. "unfinished, step 300" for a run that has not finished, or was resumed;
    else "".
    """

    name: str
    place: str
    workdir: pathlib.Path
    config: ConfigDict
    report: dict[str, Any]
    records: list[dict[str, Any]]
    unfinished: str = ""


def open_run(place: str | pathlib.Path) -> Run:
    """Reads the folder of a run, or the files at its URL; of any version of the package.

    A run that is still running, was stopped or has diverged has the metrics of its last evaluation.
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
    """The content of report.json, None if there is none or the run was started again later."""
    path = workdir / REPORT_FILE
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        reported = report["how"]["starts"]
        if missing := USED - report.keys():
            raise KeyError(min(missing))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: this is not a complete report of a run ({error}). Copy the folder again, or "
            "remove the file to see a report from the other files."
        ) from error
    starts = read_starts(workdir)
    # Updated, because folders move, and older reports have no notes.
    report["how"] |= {
        "repeat": repeat_command(workdir),
        "repeat_notes": repeat_notes(config, starts),
    }
    return report if all(start in reported for start in starts) else None


def _report_so_far(
    config: ConfigDict, workdir: pathlib.Path, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The content of report.json, as far as it is known before a run has finished."""
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
    """The settings of a run for reading, including settings that this version does not know.

    Settings that did not exist yet when the run was made have today's defaults.
    """
    tree = default_config().to_dict()
    for name, value in stored_settings(path).items():
        *groups, last = name.split(".")
        functools.reduce(lambda group, key: group.setdefault(key, {}), groups, tree)[last] = value
    return ConfigDict(tree)


def describe_run(config: ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """The part of report.json besides the metrics: settings, weights, curves, and "how".

    "how" has what may differ between two runs with the same result: machine, speed, memory.
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
    # Counted from the end, so that the last point is kept.
    rows = rows[::-1][::every][::-1]
    return {
        name: [row.get(name) for row in rows]
        for name in ("step", *names)
        if any(name in row for row in rows)
    }


def speed(records: Sequence[dict[str, Any]]) -> dict[str, int | float | None]:
    """Medians over the run, and its peak memory."""
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
    """Advice if the devices waited for images; "" if they hardly did."""
    waited = speed(records)["data_wait"] or 0.0
    if waited <= MUCH_WAITING:
        return ""
    return (
        f"{waited:.0%} of the time the devices waited for images, which are decoded again in each "
        "epoch. If they fit in memory, --config.data.cache=ram or device keeps them "
        "(docs/training.md); if there are more cores, --config.data.threads uses them for decoding."
    )
