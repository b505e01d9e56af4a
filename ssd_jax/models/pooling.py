"""Max pooling with a gradient that needs no search and no scatter."""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

Pairs = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
    x: Float[Array, "B _ _ c"],
    *,
    window: int,
    stride: int,
    padding: int = 0,
    round_up: bool = False,
) -> Float[Array, "B _ _ c"]:
    """Maxima over square windows; `round_up` adds a window for the rest of a map.

    Rounding down and up are the pooling conventions "valid" and "full" of MXNet. Of equal maxima in
    a window the first gets the gradient. It is found by comparisons, because XLA searches on one
    core of a CPU, and on a GPU writes maps of indices and scatters by them
    (experiments/speed/README.md).
    """
    rests = [-(side + 2 * padding - window) % stride if round_up else 0 for side in x.shape[1:3]]
    top, left = ((padding, padding + rest) for rest in rests)
    return _max_pool(x, window, stride, (top, left))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, stride, padding):
    return nn.max_pool(x, (window, window), (stride, stride), padding)


def _forward(x, window, stride, padding):
    y = _max_pool(x, window, stride, padding)
    return y, (x, y)


def _backward(window, stride, padding, saved, gradient):
    return max_pool_gradient(*saved, gradient, window=window, stride=stride, padding=padding)


_max_pool.defvjp(_forward, _backward)


def max_pool_gradient(
    x: Float[Array, "B H W c"],
    y: Float[Array, "B h w c"],
    gradient: Float[Array, "B h w c"],
    *,
    window: int,
    stride: int,
    padding: Pairs,
) -> tuple[Float[Array, "B H W c"]]:
    """For each position in the window, a mask of where it is the first with the maximum `y`."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    height, width = padded.shape[1:3]
    rows, columns = ((side - 1) * stride + 1 for side in y.shape[1:3])
    found = jnp.zeros(y.shape, bool)
    total = jnp.zeros_like(padded)
    for top, left in itertools.product(range(window), repeat=2):
        here = padded[:, top : top + rows : stride, left : left + columns : stride] == y
        given = jnp.where(here & ~found, gradient, 0)
        found |= here
        total += lax.pad(
            given,
            jnp.zeros((), given.dtype),
            (
                (0, 0, 0),
                (top, height - top - rows, stride - 1),
                (left, width - left - columns, stride - 1),
                (0, 0, 0),
            ),
        )
    (top, _), (left, _) = padding
    return (total[:, top : top + x.shape[1], left : left + x.shape[2]],)
