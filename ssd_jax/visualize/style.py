"""How all plots look, and where they go.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which stay apart for
colour-blind readers. Matplotlib is imported where it is used: it takes a while.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
INK = "#333333"
# Of a curve that shows each of its points.
FEW_POINTS = 30


@contextlib.contextmanager
def plot_style() -> Iterator[Callable[[float, float], Any]]:
    """Gives a function (width, height in inches) -> `Figure` while the style lasts.

    pyplot and its state are not used.
    """
    import matplotlib
    from matplotlib.figure import Figure

    options = {
        "font.family": "DejaVu Sans",
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.edgecolor": "#777777",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "legend.frameon": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(options):
        yield lambda width, height: Figure(figsize=(width, height), layout="constrained")


def save_plot(figure: Any, path: str | os.PathLike) -> None:
    """Writes a figure as PNG; its folder is made."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=150)
