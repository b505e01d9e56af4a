"""The style of all plots, and how they are saved.

The colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind readers
can distinguish. Matplotlib is imported only when it is used, because that takes a while.
"""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ssd_jax.visualize.fonts import families_of

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
INK = "#333333"
# The marker of a curve that shows each of its points.
FEW_POINTS = 30


@contextlib.contextmanager
def plot_style(names: Iterable[str] = ()) -> Iterator[Callable[[float, float], Any]]:
    """Yield a function (width, height in inches) -> `Figure` while the style is active.

    pyplot and its global state are not used, nor is the user's own style. `names` are the texts
    that may be in any script; for these an installed font is used.
    """
    import matplotlib
    import matplotlib.style
    from matplotlib.figure import Figure

    families = families_of(names)
    options = {
        "font.family": families,
        "axes.titlesize": 12,
        "axes.titlelocation": "left",
        # Matplotlib logs a warning about each family without a bold font.
        "axes.titleweight": "bold" if len(families) == 1 else "normal",
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
    with matplotlib.style.context(["default", options]):
        yield lambda width, height: Figure(figsize=(width, height), layout="constrained")


def save_plot(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure as PNG; its folder is made if needed."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A character that no installed font has is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(path, format="png", dpi=150)
