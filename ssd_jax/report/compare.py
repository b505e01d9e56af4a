"""Runs side by side: the settings in which they differ, and their results."""

import pathlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from ssd_jax.config import flat_items
from ssd_jax.files import json_line, write_text
from ssd_jax.recipes import HARDWARE
from ssd_jax.report.collect import Run
from ssd_jax.report.page import document, picture, table
from ssd_jax.visualize.curves import plot_runs

COMPARISON_FILE = "comparison.html"
CURVES_FILE = "comparison.png"

# Runs that differ only in the seed; a run that has not finished has a group of its own.
Group = list[Run]


def run_names(runs: Sequence[Run]) -> list[str]:
    """The name of each run, or its path as it was given if another run has the same name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else run.place for run in runs]


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """The runs that differ only in `seed` and HARDWARE, in the order of the first of each group.

    Own functions, settings that were changed on the way and other training data are differences.
    A second run with the same seed, e.g. of other code, opens another group.
    """
    groups: dict[str, Group] = {}
    seen: Counter[str] = Counter()
    for number, run in enumerate(runs):
        settings = [each for each in _settings(run).items() if each[0] not in ("seed", *HARDWARE)]
        measured = [run.report["protocol"].get(name) for name in ("split", "fingerprint")]
        key = repr((settings, measured, number if run.unfinished else None))
        repeated = f"{key} {run.config.seed}"
        groups.setdefault(f"{key} {seen[repeated]}", []).append(run)
        seen[repeated] += 1
    return list(groups.values())


def group_names(groups: Sequence[Group]) -> list[str]:
    """E.g. "a", "a, b", or "a .. e" for five; for an unfinished run also its last step."""
    names = iter(run_names(_all(groups)))
    found = []
    for group in groups:
        first, *others = [next(names) for _ in group]
        joined = first if not others else f"{first}{' .. ' if others[1:] else ', '}{others[-1]}"
        found.append(joined + (f" ({group[0].unfinished})" if group[0].unfinished else ""))
    return found


def differing_settings(runs: Sequence[Run]) -> dict[str, list[object]]:
    """The settings that are not the same in all runs, with the value of each run.

    A setting that did not exist yet when a run was made has today's default there; one that only
    another version knows is None in the runs that lack it. What else makes runs differ is listed
    like a setting.
    """
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = {name: [each.get(name) for each in settings] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _settings(run: Run) -> dict[str, object]:
    """The settings of a run, and what else its result depends on, as its starts recorded it."""
    settings = dict(flat_items(run.config))
    settings["fingerprint of train"] = run.report["data"].get("train", {}).get("fingerprint")
    for start in run.report["how"]["starts"]:
        own = start.get("own", {})
        settings |= {f"own {name}": function for name, function in own.items() if function}
        for name, change in start.get("changes", {}).items():
            if name not in HARDWARE:
                # Not None, which a run without the change has. Of several changes at one step the
                # first tells what was trained with.
                was = "not set" if change["from"] is None else change["from"]
                settings.setdefault(f"{name} until step {start['step']:,}", was)
    return settings


def setting_rows(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The settings that differ, as text; for a group all its seeds."""
    rows = {}
    for name, values in differing_settings(_all(groups)).items():
        left = iter(values)
        of_groups = [dict.fromkeys(str(next(left)) for _ in group) for group in groups]
        rows[name] = [", ".join(texts) for texts in of_groups]
    return rows


def metric_rows(groups: Sequence[Group]) -> dict[str, list[list[float]]]:
    """The value of each run: first the metrics that any run has, then AP by class."""
    names: dict[str, None] = {}
    for run in _all(groups):
        names |= dict.fromkeys(run.report["metrics"])
    ordered = sorted(names, key=lambda name: "/" in name)
    return {name: [_values(group, name) for group in groups] for name in ordered}


def _values(group: Group, name: str) -> list[float]:
    values = (run.report["metrics"].get(name) for run in group)
    return [value for value in values if value is not None]


def _all(groups: Iterable[Group]) -> list[Run]:
    return [run for group in groups for run in group]


def spread(values: Sequence[float], digits: int) -> str:
    """E.g. "0.52", or "0.52 [0.50, 0.55]": the mean, the lowest and the highest of several."""
    if not values:
        return "-"
    mean, low, high = (f"{f(values):.{digits}f}" for f in (fmean, min, max))
    return mean if len(values) == 1 else f"{mean} [{low}, {high}]"


def _cell(values: Sequence[float]) -> float | str | None:
    """A cell for `table`, which aligns numbers to the right."""
    if len(values) < 2:
        return values[0] if values else None
    return spread(values, 3)


def warnings(runs: Sequence[Run]) -> list[str]:
    """Why the figures of the runs cannot be compared, if they cannot."""
    found = []
    for name, text in (
        ("fingerprint", "on other images or objects"),
        ("split", "on other splits"),
        ("iou_threshold", "at other IoU thresholds"),
    ):
        recorded = (run.report["protocol"].get(name) for run in runs)
        values = {str(value) for value in recorded if value not in (None, "")}
        if len(values) > 1:
            found.append(f"measured {text}: {', '.join(sorted(values))}")
    images: dict[str | None, set[str]] = defaultdict(set)
    for run in runs:
        if image_fingerprint := run.report["protocol"].get("image_fingerprint"):
            images[run.report["protocol"].get("fingerprint")].add(image_fingerprint)
    for values in images.values():
        if len(values) > 1:
            found.append(
                "measured on images of the same names with other bytes: "
                + ", ".join(sorted(values))
            )
    return found


def markdown(runs: Sequence[Run]) -> str:
    """Metrics and differing settings as a table."""
    groups = group_by_seed(runs)
    lines = ["| | " + " | ".join(map(_escaped, group_names(groups))) + " |"]
    lines.append("| --- |" + " --- |" * len(groups))
    if len(groups) < len(runs):
        lines.append(f"| runs | {' | '.join(str(len(group)) for group in groups)} |")
    for name, columns in metric_rows(groups).items():
        if "/" not in name:
            lines.append(f"| {name} | {' | '.join(spread(each, 4) for each in columns)} |")
    for name, texts in setting_rows(groups).items():
        lines.append(f"| `{name}` | {' | '.join(map(_code, texts))} |")
    lines += [f"\nNot comparable: {text}." for text in warnings(runs)]
    return "\n".join(lines)


def _code(text: str) -> str:
    """A code cell of a Markdown table; an empty one stays empty."""
    return f"`{_escaped(text)}`" if text else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def flat_records(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One flat object per run: its name and path, the settings that differ, and its metrics.

    A setting that is not a single value is given as text, so that tables can be grouped by it.
    """
    differing = differing_settings(runs)
    return [
        {
            "run": name,
            "place": run.place,
            "unfinished": bool(run.unfinished),
            "step": run.report["step"],
            **{setting: _single(values[i]) for setting, values in differing.items()},
            **run.report["metrics"],
        }
        for i, (name, run) in enumerate(zip(run_names(runs), runs, strict=True))
    ]


def _single(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else str(value)


def record_lines(runs: Sequence[Run]) -> str:
    """`flat_records` as JSON, one object per line."""
    return "".join(map(json_line, flat_records(runs)))


def write_comparison(runs: Sequence[Run], out: pathlib.Path) -> pathlib.Path:
    """Writes comparison.html and the curves in one plot to `out`."""
    groups = group_by_seed(runs)
    names = group_names(groups)
    curves = [
        (name, [run.records for run in group]) for name, group in zip(names, groups, strict=True)
    ]
    plot_runs(curves, out / CURVES_FILE)
    metrics = [(name, *map(_cell, columns)) for name, columns in metric_rows(groups).items()]
    parts = [
        f"<h1>{len(runs)} runs side by side</h1>",
        *(f"<p>Not comparable: {text}.</p>" for text in warnings(runs)),
        "<h2>Results</h2>",
        table(("metric", *names), [("runs", *map(len, groups)), *metrics]),
        '<p class="quiet">Runs that differ only in the seed and in the hardware share a column: '
        "the mean, with the lowest and the highest in brackets and as a band.</p>",
        "<h2>Settings that differ</h2>",
        table(("setting", *names), [(name, *row) for name, row in setting_rows(groups).items()]),
        "<h2>Curves</h2>",
        picture(out / CURVES_FILE, "curves"),
    ]
    path = out / COMPARISON_FILE
    write_text(path, document("Runs side by side", parts))
    return path
