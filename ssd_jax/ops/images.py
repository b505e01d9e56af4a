"""The resampler for training, evaluation and serving, and the input normalisation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

Canvas = UInt8[Array, "H W 3"] | Float[Array, "H W 3"]
Picture = Float[Array, "S S 3"]
Colour = tuple[float | int, float | int, float | int]


class _Taps(NamedTuple):
    """The two source pixels of every output pixel along one axis.

    `fraction` is the weight of `high`; `coverage` is the weight that is inside the image.
    """

    low: Int[Array, "S"]
    high: Int[Array, "S"]
    fraction: Float[Array, "S"]
    coverage: Float[Array, "S"]


def resample(
    canvas: Canvas,
    extent: Int[Array, "2"],
    window: Int[Array, "4"],
    *,
    size: int,
    fill: Colour,
    flip: Bool[Array, ""] | bool = False,
    flip_vertical: Bool[Array, ""] | bool = False,
    recolour: Callable[[Picture], Picture] | None = None,
) -> Picture:
    """Stretch a window of the image to `size` x `size`, bilinearly, with pixel values 0..255.

    The image is the upper left `extent` (height, width) of the canvas. `window` is xyxy in its
    pixels; the part outside the image shows `fill`. `flip` mirrors left and right, `flip_vertical`
    top and bottom. `recolour` changes the image only, not the fill. Equal to OpenCV's
    `INTER_LINEAR` on the filled and cropped array: half-pixel centres, no antialiasing, taps that
    stay in the window.
    """
    xmin, ymin, xmax, ymax = window
    rows = _taps(extent[0], ymin, ymax, size=size, flip=flip_vertical)
    columns = _taps(extent[1], xmin, xmax, size=size, flip=flip)
    picture = _interpolate(canvas, rows, columns)
    if recolour is not None:
        picture = recolour(picture)
    coverage = (rows.coverage[:, None] * columns.coverage)[..., None]
    return coverage * picture + (1 - coverage) * jnp.asarray(fill, jnp.float32)


@jax.named_scope("resize")
def resize(canvas: Canvas, extent: Int[Array, "2"], *, size: int) -> Picture:
    """Stretch the whole image to `size` x `size`, as evaluation and serving do."""
    rows, columns = (_taps(length, 0, length, size=size) for length in extent)
    return _interpolate(canvas, rows, columns)


def normalise(
    images: Float[Array, "*B S S 3"], mean: Colour, std: Colour
) -> Float[Array, "*B S S 3"]:
    """Normalise RGB values 0..255 per channel; `mean` and `std` are in the same unit."""
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def _taps(
    extent: Int[Array, ""],
    start: Int[Array, ""] | int,
    stop: Int[Array, ""],
    *,
    size: int,
    flip: Bool[Array, ""] | bool = False,
) -> _Taps:
    length = stop - start
    index = jnp.arange(size)
    index = jnp.where(flip, size - 1 - index, index)
    # The source position (index + 1/2) * length / size - 1/2 in units of 1 / (2 * size): a whole
    # number, so that taps and weights are exact however large the window is.
    position = (2 * index + 1) * length - size
    first = position // (2 * size)
    fraction = (position - first * 2 * size) / (2 * size)
    low, high = (start + jnp.clip(tap, 0, length - 1) for tap in (first, first + 1))
    inside_low, inside_high = (
        ((tap >= 0) & (tap < extent)).astype(jnp.float32) for tap in (low, high)
    )
    # At the edge of the image both taps clip to the same pixel, which then has the whole weight:
    # the image is not darkened at its edge, and only `coverage` says how much fill to mix in.
    return _Taps(
        jnp.clip(low, 0, extent - 1),
        jnp.clip(high, 0, extent - 1),
        fraction,
        _mix(inside_low, inside_high, fraction),
    )


def _interpolate(canvas: Canvas, rows: _Taps, columns: _Taps) -> Picture:
    # Columns first: the rows taken afterwards are contiguous, which is twice as fast on a CPU.
    left, right = (canvas[:, taps].astype(jnp.float32) for taps in (columns.low, columns.high))
    narrow = _mix(left, right, columns.fraction[:, None])
    return _mix(narrow[rows.low], narrow[rows.high], rows.fraction[:, None, None])


def _mix(
    low: Float[Array, "..."], high: Float[Array, "..."], fraction: Float[Array, "..."]
) -> Float[Array, "..."]:
    return low + fraction * (high - low)
