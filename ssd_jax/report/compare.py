"""Runs side by side: what they were told otherwise, and what came out."""

import pathlib
from collections.abc import Sequence

from ssd_jax.config import flat_items
from ssd_jax.report.collect import Run
from ssd_jax.report.page import document, picture, table
from ssd_jax.visualize.curves import plot_runs

COMPARISON_FILE = "comparison.html"
CURVES_FILE = "comparison.png"


def run_names(runs: Sequence[Run]) -> list[str]:
    """The name of each run, or its place as it was given where another run has the same name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else run.place for run in runs]


def differing_settings(runs: Sequence[Run]) -> dict[str, list[object]]:
    """The settings that are not the same in all runs, with the value of each run.

    Runs of other versions may lack one, which is None.
    """
    settings = [dict(flat_items(run.config)) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    rows = {name: [each.get(name) for each in settings] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def metric_rows(runs: Sequence[Run]) -> dict[str, list[int | float | None]]:
    """The metrics that any of the runs has, then average precision by class."""
    names: dict[str, None] = {}
    for run in runs:
        names |= dict.fromkeys(run.report["metrics"])
    ordered = sorted(names, key=lambda name: "/" in name)
    return {name: [run.report["metrics"].get(name) for run in runs] for name in ordered}


def warnings(runs: Sequence[Run]) -> list[str]:
    """Why the figures of the runs cannot be compared, if they cannot."""
    found = []
    for name, text in (("fingerprint", "other images or objects"), ("split", "other splits")):
        values = {str(run.report["protocol"].get(name)) for run in runs}
        if len(values) > 1:
            found.append(f"measured on {text}: {', '.join(sorted(values))}")
    return found


def markdown(runs: Sequence[Run]) -> str:
    """Metrics and differing settings as a table."""
    lines = ["| | " + " | ".join(run_names(runs)) + " |"]
    lines.append("| --- |" + " --- |" * len(runs))
    for name, values in metric_rows(runs).items():
        if "/" not in name:
            texts = ["-" if value is None else f"{value:.4f}" for value in values]
            lines.append(f"| {name} | {' | '.join(texts)} |")
    for name, values in differing_settings(runs).items():
        lines.append(f"| `{name}` | {' | '.join(f'`{value}`' for value in values)} |")
    lines += [f"\nNot comparable: {text}." for text in warnings(runs)]
    return "\n".join(lines)


def write_comparison(runs: Sequence[Run], out: pathlib.Path) -> pathlib.Path:
    """comparison.html and the curves over each other, in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    names = run_names(runs)
    curves = [(name, run.records) for name, run in zip(names, runs, strict=True)]
    plot_runs(curves, out / CURVES_FILE)
    parts = [
        f"<h1>{len(runs)} runs side by side</h1>",
        *(f"<p>Not comparable: {text}.</p>" for text in warnings(runs)),
        "<h2>Results</h2>",
        table(("metric", *names), [(name, *row) for name, row in metric_rows(runs).items()]),
        "<h2>Settings that differ</h2>",
        table(
            ("setting", *names),
            [(name, *map(str, row)) for name, row in differing_settings(runs).items()],
        ),
        "<h2>Curves</h2>",
        picture(out / CURVES_FILE, "curves"),
    ]
    path = out / COMPARISON_FILE
    path.write_text(document("Runs side by side", parts), encoding="utf-8")
    return path
