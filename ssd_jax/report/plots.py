"""The curves of several runs over each other."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssd_jax.plots import FEW_POINTS, plot_style, save_plot

# (split, value, title)
PANELS = (("train", "loss", "loss"), ("val", "map_voc07", "mAP, VOC07 11-point"))


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
