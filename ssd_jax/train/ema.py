"""The exponential moving average of parameters and statistics, which is what gets measured.

Polyak and Juditsky 1992, with the warm-up of TensorFlow's ExponentialMovingAverage: the first
values are forgotten as fast as the average can follow.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Tree = TypeVar("Tree")


def moving_average(
    average: Tree, variables: Tree, step: Int[Array, ""] | int, *, decay: float
) -> Tree:
    """The average after `step` updates and one more; min(decay, (1 + step) / (10 + step)) stays."""
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: new + kept * (old - new), average, variables)
