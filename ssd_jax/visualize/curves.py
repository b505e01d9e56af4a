"""Losses and metrics over the steps of a run, or of several runs together."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ssd_jax.errors import UserError
from ssd_jax.visualize.boxes import DASHES
from ssd_jax.visualize.style import FEW_POINTS, PALETTE, plot_style, save_plot

AVERAGES = {"map_voc07": "VOC07, 11-point", "map_voc12": "VOC12, area", "map_coco": "COCO"}
# (split, value, title)
PANELS = (("train", "loss", "loss"), ("val", "map_voc07", "mAP, VOC07 11-point"))
Records = Sequence[Mapping[str, Any]]


def plot_curves(records: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Plot losses, learning rate and mAP over the steps, from the records of metrics.jsonl.

    Losses are the values with "loss" in their name, the learning rate is `lr`, the averages are
    those in AVERAGES. A panel without values is left out.
    """
    panels = {
        "loss": _series(records, lambda name: "loss" in name),
        "learning rate": _series(records, lambda name: name == "lr"),
        "mAP": _series(records, lambda name: name in AVERAGES),
    }
    panels = {title: series for title, series in panels.items() if series}
    if not panels:
        raise UserError("got no loss, lr or map to plot; expected the records of a training run")
    heights = [1 if title == "learning rate" else 3 for title in panels]
    with plot_style() as new_figure:
        figure = new_figure(8, 1 + 0.8 * sum(heights))
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        for axes, (title, series) in zip(grid[:, 0], panels.items(), strict=True):
            axes.set_title(title)
            for name, (steps, values) in series.items():
                if title == "mAP":
                    name = f"{name}: best {values.max():.3f}"
                marker = "o" if len(steps) <= FEW_POINTS else None
                axes.plot(steps, values, marker=marker, markersize=4, label=name)
            axes.set_ylim(0, 1.02 if title == "mAP" else None)
            if title != "learning rate":
                axes.legend()
        grid[-1, 0].set_xlabel("step")
        grid[-1, 0].set_xlim(left=0)
        save_plot(figure, path)


def plot_runs(curves: Sequence[tuple[str, Sequence[Records]]], path: pathlib.Path) -> None:
    """Plot loss and mAP over the steps; each curve has a name and the metrics.jsonl of its runs.

    Several runs are one curve: their mean, in a band from the lowest to the highest.
    """
    with plot_style(name for name, _ in curves) as new_figure:
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
                line = list(DASHES)[number // len(PALETTE) % len(DASHES)]
                # Matplotlib leaves names that begin with an underscore out of a legend.
                label = f" {name}" if name.startswith("_") else name
                # A single evaluation does not make a line.
                marker = "o" if len(points) <= FEW_POINTS else None
                steps, means = list(points), [fmean(values) for values in points.values()]
                axes.plot(steps, means, line, marker=marker, markersize=4, label=label, color=color)
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
    """The values of all runs at the steps of the first one, as far as all runs have got.

    The values of runs that logged or evaluated at other steps are interpolated.
    """
    if not all(runs):
        return {}
    begin, end = max(map(min, runs)), min(map(max, runs))
    steps = [step for step in sorted(runs[0]) if begin <= step <= end]
    curves = [np.interp(steps, *zip(*sorted(points.items()), strict=True)) for points in runs]
    return dict(zip(steps, np.transpose(curves).tolist(), strict=True))


def _series(records, wanted):
    """{name: (steps, values)} of the finite values with a wanted name, separately per split."""
    series = {}
    for record in records:
        for name, value in record.items():
            if wanted(name) and value is not None:
                series.setdefault((record["split"], name), []).append((record["step"], value))
    several = len({split for split, _ in series}) > 1
    curves = {}
    for (split, name), points in series.items():
        readable = AVERAGES.get(name, name.replace("_", " "))
        curves[f"{split} {readable}" if several else readable] = np.transpose(points)
    return curves
