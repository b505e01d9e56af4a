"""Convolution that is also fast on CPUs."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Pairs = tuple[tuple[int, int], tuple[int, int]]
# The pixels of a strip of rows; with 64 channels half a megabyte, which fits into a CPU's cache.
_PIXELS = 2048
# Multiplying matrices with so few columns is slow; those of all taps are then joined into one.
_FEW_CHANNELS = 16
# Multiplications per image in the forward pass: half a millisecond of one core.
_WORTH_IT = 2**24


def convolution(
    images: Float[Array, "B H W i"],
    kernel: Float[Array, "h w i o"],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **others: object,
) -> Float[Array, "B _ _ o"]:
    """`lax.conv_general_dilated` as `flax.linen.Conv` calls it, for its `conv_general_dilated`.

    On CPUs two cases are computed as matrix products, because XLA is slow at them
    (experiments/speed/README.md): a kernel of 1x1, which XLA computes on one core, and the gradient
    of any kernel, which for XLA is a convolution whose window is a whole feature map. Other devices
    use XLA's convolution, and so do layers so small that the longer compilation would not pay off.
    """
    del others  # one group, no dilated images, the default precision, the layout NHWC
    settings = tuple(window_strides), tuple(padding), tuple(rhs_dilation)
    places = math.prod(images.shape[1:3]) // math.prod(window_strides)
    if places * kernel.size < _WORTH_IT:
        return _by_xla(images, kernel, *settings)
    return _convolution(images, kernel, *settings)


def _by_xla(images, kernel, strides, padding, dilation):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_LAYOUT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(images, kernel, strides, padding, dilation):
    settings = {"strides": strides, "padding": padding, "dilation": dilation}
    by_xla = functools.partial(_by_xla, **settings)
    if not _is_pointwise(kernel, padding):
        return by_xla(images, kernel)
    on_cpu = functools.partial(_pointwise, strides=strides)
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=by_xla)


def _is_pointwise(kernel, padding):
    return kernel.shape[:2] == (1, 1) and not any(map(any, padding))


def _pointwise(images, kernel, *, strides):
    # Two axes each, so that the gradient of the kernel is a product of the matrices as stored; with
    # more axes XLA makes a transposed copy.
    seen = images[:, :: strides[0], :: strides[1]]
    matrix = kernel[0, 0]
    return (seen.reshape(-1, len(matrix)) @ matrix).reshape(*seen.shape[:3], -1)


def _forward(images, kernel, strides, padding, dilation):
    return _convolution(images, kernel, strides, padding, dilation), (images, kernel)


def _backward(strides, padding, dilation, saved, gradient):
    images, kernel = saved
    settings = {"strides": strides, "padding": padding, "dilation": dilation}

    def by_xla(images, kernel, gradient):
        return jax.vjp(functools.partial(_by_xla, **settings), images, kernel)[1](gradient)

    def on_cpu(images, kernel, gradient):
        if _is_pointwise(kernel, padding):
            forward = functools.partial(_pointwise, strides=strides)
            return jax.vjp(forward, images, kernel)[1](gradient)
        of_images, _ = by_xla(images, kernel, gradient)
        of_kernel = kernel_gradient(images, gradient, kernel_shape=kernel.shape, **settings)
        return of_images, of_kernel

    return lax.platform_dependent(images, kernel, gradient, cpu=on_cpu, default=by_xla)


_convolution.defvjp(_forward, _backward)


def kernel_gradient(
    images: Float[Array, "B H W i"],
    gradient: Float[Array, "B _ _ o"],
    *,
    kernel_shape: tuple[int, int, int, int],
    strides: tuple[int, int],
    padding: Pairs,
    dilation: tuple[int, int],
) -> Float[Array, "h w i o"]:
    """The gradient of the kernel: for each tap, its input times the gradient of its output.

    Rows are processed a few at a time, so that every tap finds them in the CPU's cache. A matrix
    product reads its first factor by rows, so one of the two must be transposed: the gradient,
    which is the same for all taps. For images of few channels, such as RGB, all taps together are
    one product.
    """
    height, width, channels, features = kernel_shape
    batch, rows, columns, _ = gradient.shape
    block = _largest_divisor(rows, at_most=max(1, _PIXELS // (batch * columns)))
    spans = ((block - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1)
    tall = spans[0] + (height - 1) * dilation[0]
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))

    def seen(strip, tap):
        row, column = tap // width, tap % width
        corner = (0, row * dilation[0], column * dilation[1], 0)
        pixels = lax.dynamic_slice(strip, corner, (batch, *spans, channels))
        return pixels[:, :: strides[0], :: strides[1]].reshape(-1, channels)

    def add(number, total):
        strip = lax.dynamic_slice_in_dim(padded, number * block * strides[0], tall, axis=1)
        given = lax.dynamic_slice_in_dim(gradient, number * block, block, axis=1)
        given = given.reshape(-1, features).T
        multiply = functools.partial(jnp.matmul, given, preferred_element_type=jnp.float32)
        if channels < _FEW_CHANNELS:
            together = jnp.concatenate([seen(strip, tap) for tap in range(height * width)], axis=1)
            products = multiply(together).reshape(features, -1, channels).swapaxes(0, 1)
        else:
            products = lax.map(lambda tap: multiply(seen(strip, tap)), jnp.arange(height * width))
        return total + products

    # A zero that varies over devices inside `shard_map`, like the sum.
    nothing = gradient[:0].sum(dtype=jnp.float32)
    nothing = jnp.broadcast_to(nothing, (height * width, features, channels))
    total = lax.fori_loop(0, rows // block, add, nothing)
    return total.swapaxes(1, 2).reshape(kernel_shape).astype(gradient.dtype)


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(each for each in range(min(number, at_most), 0, -1) if number % each == 0)
