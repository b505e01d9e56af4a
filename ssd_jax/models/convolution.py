"""Convolution with a kernel gradient that is quick on CPUs too."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
Pairs = tuple[tuple[int, int], tuple[int, int]]


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

    XLA takes the kernel gradient as a convolution whose window is a whole feature map, and on CPUs
    spends three to ten times as long on it as on the convolution itself. There it is computed as
    one matrix product a tap of the kernel (`experiments/speed`); elsewhere nothing changes.
    """
    del others  # one group, no dilated images, the default precision, the layout NHWC
    return _convolution(images, kernel, tuple(window_strides), tuple(padding), tuple(rhs_dilation))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution(images, kernel, strides, padding, dilation):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_LAYOUT
    )


def _forward(images, kernel, strides, padding, dilation):
    return _convolution(images, kernel, strides, padding, dilation), (images, kernel)


def _backward(strides, padding, dilation, saved, gradient):
    images, kernel = saved
    how = {"strides": strides, "padding": padding, "dilation": dilation}
    _, of_images = jax.vjp(lambda images: _convolution.fun(images, kernel, *how.values()), images)

    def as_convolution(images, gradient):
        return jax.vjp(lambda k: _convolution.fun(images, k, *how.values()), kernel)[1](gradient)[0]

    as_products = functools.partial(kernel_gradient, kernel_shape=kernel.shape, **how)
    of_kernel = lax.platform_dependent(images, gradient, cpu=as_products, default=as_convolution)
    return of_images(gradient)[0], of_kernel


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
    """For each tap of the kernel the products of what it saw with the gradient of what it gave."""
    height, width, channels, _ = kernel_shape
    rows, columns = gradient.shape[1:3]
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))

    def tap(row, column):
        starts = (row * dilation[0], column * dilation[1])
        spans = ((rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1)
        seen = padded[
            :,
            starts[0] : starts[0] + spans[0] : strides[0],
            starts[1] : starts[1] + spans[1] : strides[1],
        ]
        return jnp.tensordot(seen, gradient, axes=((0, 1, 2), (0, 1, 2)))

    taps = [tap(row, column) for row in range(height) for column in range(width)]
    return jnp.stack(taps).reshape(kernel_shape)
