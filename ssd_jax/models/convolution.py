"""Convolution that is quick on CPUs too."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PLACES = ((0, 1, 2), (0, 1, 2))
Pairs = tuple[tuple[int, int], tuple[int, int]]
# Of a strip of rows; with 64 channels half a megabyte, which a processor keeps at hand.
_PIXELS = 2048
# Multiplications for an image going forward, half a millisecond of a core.
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

    On CPUs two of its cases are computed as matrix products, because XLA is slow at them
    (docs/performance.md). A kernel of 1x1 is one, which XLA leaves to one core. The other is the
    gradient of any kernel, for XLA a convolution whose window is a whole feature map. Elsewhere
    nothing changes, nor for layers so small that the longer compilation would not pay.
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
    return jnp.tensordot(images[:, :: strides[0], :: strides[1]], kernel[0, 0], axes=1)


def _forward(images, kernel, strides, padding, dilation):
    return _convolution(images, kernel, strides, padding, dilation), (images, kernel)


def _backward(strides, padding, dilation, saved, gradient):
    images, kernel = saved
    settings = {"strides": strides, "padding": padding, "dilation": dilation}

    def by_xla(images, kernel, gradient):
        return jax.vjp(functools.partial(_by_xla, **settings), images, kernel)[1](gradient)

    def on_cpu(images, kernel, gradient):
        of_kernel = kernel_gradient(images, gradient, kernel_shape=kernel.shape, **settings)
        if _is_pointwise(kernel, padding):
            forward = functools.partial(_pointwise, kernel=kernel, strides=strides)
            (of_images,) = jax.vjp(forward, images)[1](gradient)
        else:
            of_images, _ = by_xla(images, kernel, gradient)
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
    """For each tap of the kernel the product of what it saw with the gradient of what it gave.

    A few rows at a time, so that every tap finds them in the processor's cache.
    """
    height, width, channels, _ = kernel_shape
    batch, rows, columns, _ = gradient.shape
    block = _largest_divisor(rows, at_most=max(1, _PIXELS // (batch * columns)))
    spans = ((block - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))

    def add(number, total):
        tall = spans[0] + (height - 1) * dilation[0]
        strip = lax.dynamic_slice_in_dim(padded, number * block * strides[0], tall, axis=1)
        given = lax.dynamic_slice_in_dim(gradient, number * block, block, axis=1)

        def product(tap):
            row, column = jnp.divmod(tap, width)
            corner = (0, row * dilation[0], column * dilation[1], 0)
            seen = lax.dynamic_slice(strip, corner, (batch, *spans, channels))
            seen = seen[:, :: strides[0], :: strides[1]]
            return jnp.tensordot(seen, given, axes=_PLACES, preferred_element_type=jnp.float32)

        return total + lax.map(product, jnp.arange(height * width)).reshape(kernel_shape)

    # A zero that inside `shard_map` is each device's own, as the sum is.
    nothing = gradient[:0].sum(dtype=jnp.float32)
    total = lax.fori_loop(0, rows // block, add, jnp.broadcast_to(nothing, kernel_shape))
    return total.astype(gradient.dtype)


def _largest_divisor(number: int, *, at_most: int) -> int:
    return next(each for each in range(min(number, at_most), 0, -1) if number % each == 0)
