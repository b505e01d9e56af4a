"""The resampler with a choice of interpolations: `images.resample` with OpenCV's other methods.

Definitions follow OpenCV's modules/imgproc/src/resize.cpp. A method is a number of taps along a
line and their weights, so a choice that differs between images costs only one resampling, not one
for each method.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ssd_jax.errors import UserError
from ssd_jax.ops.images import Canvas, Colour, Picture

INTERPOLATIONS = ("nearest", "linear", "cubic", "area", "lanczos4")


class _Axis(NamedTuple):
    """One axis of the window: `size` output pixels, numbered `index`, from `length` pixels."""

    index: Int[Array, "S"]
    start: Int[Array, ""]  # of the window in the image
    length: Int[Array, ""]
    extent: Int[Array, ""]  # of the image
    flip: Bool[Array, ""]

    @property
    def size(self) -> int:
        return len(self.index)


class _Taps(NamedTuple):
    """The taps of every output pixel along one axis; taps outside the image have weight 0."""

    index: Int[Array, "T S"]
    weight: Float[Array, "T S"]


_Kernel = tuple[Int[Array, "S"], Float[Array, "_ S"]]  # the first tap, from the window's start


def resample_by(
    choice: Int[Array, ""],
    canvas: Canvas,
    extent: Int[Array, "2"],
    window: Int[Array, "4"],
    *,
    methods: tuple[str, ...],
    longest: int,
    size: int,
    fill: Colour,
    flip: Bool[Array, ""] | bool = False,
    flip_vertical: Bool[Array, ""] | bool = False,
) -> Picture:
    """`images.resample` with `methods[choice]` of INTERPOLATIONS; saturates to 0..255.

    `longest` bounds the sides of the window: "area" needs a tap for each pixel in an output pixel.
    """
    if not methods or not set(methods) <= set(INTERPOLATIONS):
        raise UserError(
            f"got interpolations {methods}; expected one or more of {', '.join(INTERPOLATIONS)}"
        )
    axes = _Axis(
        jnp.tile(jnp.arange(size), (2, 1)),
        start=window[1::-1],
        length=(window[2:] - window[:2])[::-1],
        extent=extent,
        flip=jnp.array([flip_vertical, flip]),
    )
    shrinks = (axes.length >= size).all()

    def chosen(axis):
        kernels = [_KERNELS[method](axis, shrinks, longest // size + 2) for method in methods]
        return _chosen(choice, kernels, axis)

    # Both axes at once, which halves the time to compile.
    taps = jax.vmap(chosen)(axes)
    rows, columns = (_Taps(taps.index[axis], taps.weight[axis]) for axis in (0, 1))
    # Columns first: the rows taken afterwards are contiguous, which is faster on a CPU. Loops, as
    # otherwise XLA computes the columns again for every tap of a row, ten times slower. They start
    # with zeros made from the canvas, which vary over devices in the same way.
    narrow = jax.lax.fori_loop(
        0,
        len(columns.index),
        lambda tap, total: total + canvas[:, columns.index[tap]] * columns.weight[tap][:, None],
        jnp.zeros_like(canvas, jnp.float32, (canvas.shape[0], size, 3)),
    )
    picture = jax.lax.fori_loop(
        0,
        len(rows.index),
        lambda tap, total: total + narrow[rows.index[tap]] * rows.weight[tap][:, None, None],
        jnp.zeros_like(narrow, shape=(size, size, 3)),
    )
    coverage = (rows.weight.sum(axis=0)[:, None] * columns.weight.sum(axis=0))[..., None]
    return jnp.clip(picture + (1 - coverage) * jnp.asarray(fill, jnp.float32), 0, 255)


def _chosen(choice: Int[Array, ""], kernels: list[_Kernel], axis: _Axis) -> _Taps:
    """The taps of one of the kernels: inside the window, with weight 0 outside the image."""
    number = max(len(weight) for _, weight in kernels)
    first = jnp.stack([first for first, _ in kernels])[choice]
    weight = jnp.stack([_padded(weight, number) for _, weight in kernels])[choice]
    index = jnp.clip(first + jnp.arange(number)[:, None], 0, axis.length - 1)
    # Mirror the window, not the output: for "nearest" and "area" the results would differ.
    index = axis.start + jnp.where(axis.flip, axis.length - 1 - index, index)
    inside = (index >= 0) & (index < axis.extent)
    return _Taps(jnp.clip(index, 0, axis.extent - 1), jnp.where(inside, weight, 0))


def _padded(weight: Float[Array, "_ S"], number: int) -> Float[Array, "T S"]:
    return jnp.pad(weight, ((0, number - len(weight)), (0, 0)))


def _nearest(axis: _Axis) -> _Kernel:
    return axis.index * axis.length // axis.size, jnp.ones((1, axis.size))


def _linear(axis: _Axis) -> _Kernel:
    first, fraction = _position(axis)
    return first, jnp.stack([1 - fraction, fraction])


def _cubic(axis: _Axis) -> _Kernel:
    """The bicubic kernel with parameter -0.75."""
    first, fraction = _position(axis)
    near, far = jnp.stack([fraction, 1 - fraction]), jnp.stack([1 + fraction, 2 - fraction])
    near = (1.25 * near - 2.25) * near**2 + 1
    far = ((-0.75 * far + 3.75) * far - 6) * far + 3
    return first - 1, jnp.stack([far[0], near[0], near[1], far[1]])


def _lanczos4(axis: _Axis) -> _Kernel:
    """Eight taps of a sinc under a wider sinc, normalised."""
    first, fraction = _position(axis)
    distance = fraction + 3 - jnp.arange(8.0)[:, None]
    weight = _sinc(distance) * _sinc(distance / 4)
    return first - 3, weight / weight.sum(axis=0)


def _sinc(x):
    # In JAX 0.12 jnp's version refuses arrays that vary over devices inside `jax.shard_map`.
    angle = jnp.where(x == 0, 1.0, jnp.pi * x)
    return jnp.where(x == 0, 1.0, jnp.sin(angle) / angle)


def _area(axis: _Axis, shrinks: Bool[Array, ""], taps: int) -> _Kernel:
    """The average over the output pixel, or a mix of two if the image is enlarged on an axis."""
    first = axis.index * axis.length // axis.size
    begin = (axis.index * axis.length % axis.size) / axis.size  # within the first tap
    width = axis.length / axis.size
    tap = jnp.arange(float(taps))[:, None]
    overlap = jnp.minimum(tap + 1, begin + width) - jnp.maximum(tap, begin)
    averaged = jnp.clip(overlap, 0) / width
    # The fraction of the output pixel that is beyond the end of the first tap.
    beyond = ((axis.index + 1) * axis.length - (first + 1) * axis.size) / axis.length
    beyond = jnp.where(beyond <= 0, 0, beyond - jnp.floor(beyond))
    mixed = _padded(jnp.stack([1 - beyond, beyond]), taps)
    return first, jnp.where(shrinks, averaged, mixed)


def _position(axis: _Axis) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """The source pixel before the centre of each output pixel, and the distance to its centre."""
    # In units of 1 / (2 * size), a whole number, so exact however large the window is.
    position = (2 * axis.index + 1) * axis.length - axis.size
    first = position // (2 * axis.size)
    return first, (position - first * 2 * axis.size) / (2 * axis.size)


_KERNELS = {
    "nearest": lambda axis, shrinks, taps: _nearest(axis),
    "linear": lambda axis, shrinks, taps: _linear(axis),
    "cubic": lambda axis, shrinks, taps: _cubic(axis),
    "area": _area,
    "lanczos4": lambda axis, shrinks, taps: _lanczos4(axis),
}
