"""One page about the annotations of a data set: classes, sizes, shapes, and anchors."""

import os

import numpy as np
from jaxtyping import Float

from ssd_jax.data.findings import REACHING_IOU, best_ious
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import counted
from ssd_jax.visualize.style import INK, PALETTE, plot_style, save_plot

MAX_BARS = 24
FEWEST_BARS = 10  # with fewer classes the bars would become too thick
MAX_POINTS = 4000
SIDES = (0.01, 0.03, 0.1, 0.3, 1.0)
RATIOS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
RATIO_NAMES = ("1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1")


def plot_data(
    source: Source,
    path: str | os.PathLike,
    *,
    anchors: Float[np.ndarray, "A 4"] | None = None,
    title: str = "",
) -> None:
    """Write the page as PNG: objects per class, box sizes, aspect ratios, objects per image.

    Sizes are fractions of the image side, which is what a network with square input sees. With
    anchors the page also shows their sizes, and how well the best one fits each object.
    """
    columns = source.annotations
    sides = columns.boxes[:, 2:] - columns.boxes[:, :2]
    with plot_style([title, *source.classes]) as new_figure:
        figure = new_figure(12, 8.5)
        empty = int(np.sum(source.object_counts == 0))
        figures = f"{counted(len(source), 'image')}, {counted(len(sides), 'object')}, "
        figures += f"{counted(empty, 'image')} without any"
        figure.suptitle(f"{title}: {figures}" if title else figures, x=0.01, ha="left")
        grid = figure.subplot_mosaic(
            [["classes", "sizes", "sizes"], ["classes", "ratios", "last"]],
            width_ratios=(1.15, 1, 1),
            height_ratios=(1.35, 1),
        )
        for axes in grid.values():
            axes.set_axisbelow(True)
        _draw_classes(grid["classes"], source)
        reach = None if anchors is None or not len(sides) else best_ious(columns, anchors)
        _draw_sizes(grid["sizes"], sides, anchors, reach)
        _draw_ratios(grid["ratios"], sides, anchors)
        if reach is None:
            _draw_counts(grid["last"], source)
        else:
            _draw_fit(grid["last"], reach)
        save_plot(figure, path)


def _draw_classes(axes, source):
    labels, difficult = source.annotations.labels, source.annotations.difficult
    count = len(source.classes)
    easy = np.bincount(labels[~difficult], minlength=count)
    every = np.bincount(labels, minlength=count)
    order = np.argsort(-every, kind="stable")
    names = [source.classes[label] for label in order[:MAX_BARS]]
    easy, every = easy[order], every[order]
    if count > MAX_BARS:
        names.append(f"{count - MAX_BARS} more classes")
        easy, every = (np.append(n[:MAX_BARS], n[MAX_BARS:].sum()) for n in (easy, every))
    places = np.arange(len(names))
    axes.barh(places, easy, color=PALETTE[0], label="objects")
    if difficult.any():
        axes.barh(places, every - easy, left=easy, color=PALETTE[5], label="difficult")
        axes.legend(loc="lower right")
    for place, number in zip(places, every, strict=True):
        axes.annotate(f" {number:,}", (number, place), va="center", fontsize=8)
    axes.set_yticks(places, names)
    axes.set_ylim(max(len(names), FEWEST_BARS) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    axes.set_title("Classes")


def _draw_sizes(axes, sides, anchors, reach):
    few = np.unique(np.linspace(0, len(sides) - 1, min(len(sides), MAX_POINTS)).astype(int))
    dots = {"s": 9, "linewidths": 0, "alpha": 0.45}
    if reach is None:
        axes.scatter(*sides[few].T, color=PALETTE[0], **dots)
    else:
        reached = reach.best >= REACHING_IOU
        for keep, color, text in (
            (reached, PALETTE[0], f"IoU {REACHING_IOU:g} or more with an anchor"),
            (~reached, PALETTE[1], "less"),
        ):
            share = f"{np.mean(keep):.1%} of the objects: {text}"
            axes.scatter(*sides[reach.objects[keep]].T, color=color, label=share, **dots)
    if anchors is not None:
        kinds = np.unique(np.round(anchors[:, 2:] - anchors[:, :2], 4), axis=0)
        text = f"the {len(kinds)} shapes of anchors"
        axes.scatter(*kinds.T, marker="+", s=60, linewidths=1.6, color=INK, label=text)
    axes.set(xscale="log", yscale="log", xlim=(0.008, 1.25), ylim=(0.008, 1.25))
    axes.set(xlabel="width, fraction of the image", ylabel="height, fraction of the image")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(SIDES, [f"{side:.0%}" for side in SIDES])
        axis.set_ticks([], minor=True)
    if anchors is not None:
        for handle in axes.legend(loc="lower right", markerscale=1.4).legend_handles:
            handle.set_alpha(1)
    axes.set_title("Box sizes")


def _draw_ratios(axes, sides, anchors):
    bins = np.geomspace(RATIOS[0], RATIOS[-1], 37)
    ratios = np.clip(sides[:, 0] / np.maximum(sides[:, 1], 1e-6), RATIOS[0], RATIOS[-1])
    axes.hist(ratios, bins, color=PALETTE[0])
    if anchors is not None:
        widths, heights = (anchors[:, 2:] - anchors[:, :2]).T
        for ratio in np.unique(np.round(widths / heights, 2)):
            axes.axvline(ratio, color=INK, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(RATIOS, RATIO_NAMES)
    axes.set_xticks([], minor=True)
    axes.set(xlabel="width : height", ylabel="objects")
    axes.set_title("Aspect ratios" + ("" if anchors is None else " (dotted: anchors)"))


def _draw_fit(axes, reach):
    bins = np.linspace(0, 1, 41)
    for keep, color in ((reach.best >= REACHING_IOU, 0), (reach.best < REACHING_IOU, 1)):
        axes.hist(reach.best[keep], bins, color=PALETTE[color])
    axes.axvline(REACHING_IOU, color=INK, linestyle=":", linewidth=1)
    axes.set(xlim=(0, 1), xlabel="IoU with the best anchor", ylabel="objects")
    axes.set_title("How well the anchors fit")


def _draw_counts(axes, source):
    counts = source.object_counts
    most = int(counts.max(initial=1))
    axes.hist(counts, np.arange(0, most + 2, max(1, most // 40)) - 0.5, color=PALETTE[0])
    axes.set(xlabel="objects in an image", ylabel="images")
    axes.set_title(f"Objects in an image, at most {most}")
