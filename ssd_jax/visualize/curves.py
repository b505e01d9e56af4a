"""Losses and metrics over the steps of a run, or of several over each other."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssd_jax.errors import UserError
from ssd_jax.visualize.style import FEW_POINTS, plot_style, save_plot

AVERAGES = {"map_voc07": "VOC07, 11-point", "map_voc12": "VOC12, area", "map_coco": "COCO"}
# (split, value, title)
PANELS = (("train", "loss", "loss"), ("val", "map_voc07", "mAP, VOC07 11-point"))


def plot_curves(records: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Losses, learning rate and mAP over the steps of a run, from the records of metrics.jsonl.

    Losses are the values with "loss" in their name, the learning rate is `lr`, the averages are
    those of AVERAGES. A panel without values is left out.
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


def plot_runs(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], path: pathlib.Path) -> None:
    """Loss and mAP over the steps of each run: its name, and the records of its metrics.jsonl."""
    with plot_style() as new_figure:
        figure = new_figure(8, 6)
        for axes, (split, name, title) in zip(
            figure.subplots(len(PANELS), 1, sharex=True), PANELS, strict=True
        ):
            axes.set_title(title)
            for name_of_run, records in runs:
                points = [
                    (record["step"], record[name])
                    for record in records
                    if record["split"] == split and record.get(name) is not None
                ]
                if points:
                    # A single evaluation is no line.
                    marker = "o" if len(points) <= FEW_POINTS else None
                    axes.plot(
                        *zip(*points, strict=True), marker=marker, markersize=4, label=name_of_run
                    )
            axes.set_ylim(bottom=0)
            axes.legend()
        axes.set_xlabel("step")
        save_plot(figure, path)


def _series(records, wanted):
    """{name: (steps, values)} of the finite values with a wanted name; splits are told apart."""
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
