"""The plots of an evaluation: precision and recall, kinds of errors, sizes of objects."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from ssd_jax.evaluation.errors import KINDS, VERDICTS, ErrorBreakdown
from ssd_jax.evaluation.metrics import ErrorAnalysis, Evaluation
from ssd_jax.evaluation.sizes import LIMITS, SizeResult
from ssd_jax.evaluation.voc import VocResult
from ssd_jax.visualize.boxes import DASHES
from ssd_jax.visualize.style import PALETTE, plot_style, save_plot

# A plot with more rows would be unreadable; the classes with the most objects are shown.
MOST_CLASSES = 30
LONGEST_NAME = 30
COLORS = {
    "correct": PALETTE[0],
    "localisation": PALETTE[4],
    "confusion": PALETTE[3],
    "duplicate": PALETTE[5],
    "background": PALETTE[1],
    "missed": "#999999",
}
_UNITS = {"pixels": "by size in pixels", "image": "by fraction of the image side"}


def draw_measures(
    evaluation: Evaluation,
    diagnosis: ErrorAnalysis,
    folder: str | os.PathLike,
    *,
    classes: Sequence[str],
) -> None:
    """Write precision_recall.png, errors.png and sizes.png into a folder."""
    folder = pathlib.Path(folder)
    plot_precision_recall(evaluation.result, classes, folder / "precision_recall.png")
    plot_errors(diagnosis.errors, classes, folder / "errors.png")
    plot_sizes(diagnosis.sizes, folder / "sizes.png")


def plot_precision_recall(
    result: VocResult, classes: Sequence[str], path: str | os.PathLike
) -> None:
    """One curve for each class that has objects, with its 11-point AP in the legend.

    Of more than MOST_CLASSES, those with the most objects are drawn.
    """
    curves = [
        (label, name, each)
        for label, (name, each) in enumerate(zip(classes, result.per_class, strict=True))
        if each.ap11 is not None
    ]
    drawn = sorted(curves, key=lambda curve: -curve[2].npos)[:MOST_CLASSES]
    drawn.sort(key=lambda curve: curve[0])
    with plot_style(classes) as new_figure:
        figure = new_figure(8, max(5, 1.5 + 0.2 * len(drawn)))
        axes = figure.subplots()
        for label, name, each in drawn:
            envelope = np.maximum.accumulate(each.precision[::-1])[::-1]
            axes.step(
                np.append(0, each.recall),
                np.append(envelope[:1], envelope) if len(envelope) else [0],
                color=PALETTE[label % len(PALETTE)],  # the same as in images of boxes
                linestyle=list(DASHES)[label // len(PALETTE) % len(DASHES)],
                label=f"{each.ap11:.3f}  {_short(name)}",
            )
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall")
        axes.set_ylabel("best precision at this recall or a higher one")
        title = "" if result.map11 is None else f"mAP {result.map11:.3f}"
        if len(drawn) < len(curves):
            title += f"; the {len(drawn)} of {len(curves)} classes with the most objects"
        axes.set_title(title)
        protocol = result.protocol.describe("11-point")
        figure.supxlabel(protocol, x=0.01, ha="left", fontsize=8, color="#777777")
        if axes.lines:
            axes.legend(title="AP", alignment="left", loc="upper left", bbox_to_anchor=(1.01, 1))
        save_plot(figure, path)


def plot_errors(errors: ErrorBreakdown, classes: Sequence[str], path: str | os.PathLike) -> None:
    """The verdicts on the best detections of each class, and the gain in mAP without each kind."""
    rows = [("all", errors.total)]
    by_objects = sorted(
        zip(classes, errors.counts, strict=True), key=lambda row: -row[1]["objects"]
    )
    rows += [row for row in by_objects[:MOST_CLASSES] if row[1]["objects"]]
    with plot_style(classes) as new_figure:
        figure = new_figure(11, 2.4 + 0.28 * max(len(rows), len(KINDS)))
        shares, gains = figure.subplots(1, 2, width_ratios=(3, 2))
        places = np.arange(len(rows))
        objects = np.array([max(counts["objects"], 1) for _, counts in rows])
        left = np.zeros(len(rows))
        for verdict in VERDICTS[1:]:
            share = np.array([counts[verdict] for _, counts in rows]) / objects
            shares.barh(places, share, left=left, color=COLORS[verdict], label=verdict)
            left += share
        names = [f"{_short(name)} ({counts['objects']:,})" for name, counts in rows]
        shares.set_yticks(places, names)
        shares.set(xlim=(0, 1), xlabel="share of the N best detections, for N objects")
        shares.invert_yaxis()
        shares.grid(axis="y", visible=False)
        shares.set_axisbelow(True)
        shares.margins(y=0.02)
        shares.set_title("Best detections of each class (objects)")
        figure.legend(
            *shares.get_legend_handles_labels(), loc="outside lower left", ncols=len(VERDICTS) - 1
        )

        values = [errors.gains[kind] or 0.0 for kind in KINDS]
        bars = gains.barh(np.arange(len(KINDS)), values, color=[COLORS[kind] for kind in KINDS])
        gains.bar_label(bars, [f"{value:.3f}" for value in values], padding=3)
        labels = [f"{kind} ({errors.total['missed']:,})" if kind == "missed" else kind
                  for kind in KINDS]  # fmt: skip
        gains.set_yticks(np.arange(len(KINDS)), labels)
        gains.set(xlim=(min(0, *values), max(0.01, *values) * 1.2), xlabel="gain in mAP (area)")
        gains.invert_yaxis()
        gains.grid(axis="y", visible=False)
        gains.set_axisbelow(True)
        gains.set_title("Without this kind of error")
        save_plot(figure, path)


def plot_sizes(sizes: Sequence[SizeResult], path: str | os.PathLike) -> None:
    """The average precision for each size, with the number of objects below."""
    panels = {unit: [each for each in sizes if each.unit == unit] for unit in LIMITS}
    with plot_style() as new_figure:
        figure = new_figure(11, 3.6)
        grid = figure.subplots(
            1, len(panels), sharey=True, width_ratios=[len(each) for each in panels.values()]
        )
        for axes, (unit, ranges) in zip(grid, panels.items(), strict=True):
            bars = axes.bar(range(len(ranges)), [each.ap or 0.0 for each in ranges])
            texts = ["none" if each.ap is None else f"{each.ap:.3f}" for each in ranges]
            axes.bar_label(bars, texts, padding=2)
            axes.set_xticks(
                range(len(ranges)), [f"{each.name}\n{each.objects:,} objects" for each in ranges]
            )
            axes.set_ylim(0, 1.08)
            axes.grid(axis="x", visible=False)
            axes.set_axisbelow(True)
            axes.set_title(_UNITS[unit])
        grid[0].set_ylabel("mAP (area)")
        save_plot(figure, path)


def _short(name: str) -> str:
    """A class name that leaves room for the plot."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
