"""The curves of several runs over each other."""

import pathlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ssd_jax.plots import FEW_POINTS, PALETTE, plot_style, save_plot

# (split, value, title)
PANELS = (("train", "loss", "loss"), ("val", "map_voc07", "mAP, VOC07 11-point"))
Records = Sequence[Mapping[str, Any]]


def plot_runs(curves: Sequence[tuple[str, Sequence[Records]]], path: pathlib.Path) -> None:
    """Loss and mAP over the steps: of each curve its name, and the metrics.jsonl of its runs.

    Several runs are one curve: their mean, in a band from the lowest to the highest.
    """
    with plot_style() as new_figure:
        figure = new_figure(8, 6)
        for axes, (split, value, title) in zip(
            figure.subplots(len(PANELS), 1, sharex=True), PANELS, strict=True
        ):
            axes.set_title(title)
            for number, (name, runs) in enumerate(curves):
                points = _shared_points([_points(records, split, value) for records in runs])
                if not points:
                    continue
                color = PALETTE[number % len(PALETTE)]
                # A single evaluation is no line.
                marker = "o" if len(points) <= FEW_POINTS else None
                steps, means = list(points), [fmean(values) for values in points.values()]
                axes.plot(steps, means, marker=marker, markersize=4, label=name, color=color)
                if len(runs) > 1:
                    lowest, highest = map(min, points.values()), map(max, points.values())
                    axes.fill_between(steps, [*lowest], [*highest], color=color, alpha=0.2, lw=0)
            axes.set_ylim(bottom=0)
            if axes.lines:
                axes.legend()
        axes.set_xlabel("step")
        save_plot(figure, path)


def _points(records: Records, split: str, value: str) -> dict[int, float]:
    """The finite values by their steps."""
    return {
        record["step"]: record[value]
        for record in records
        if record["split"] == split and record.get(value) is not None
    }


def _shared_points(runs: Sequence[Mapping[int, float]]) -> dict[int, list[float]]:
    """The values of all runs, at the steps that all of them have."""
    shared = set.intersection(*(set(points) for points in runs))
    return {step: [points[step] for points in runs] for step in sorted(shared)}
