"""The exponential moving average (EMA) of parameters and statistics, which evaluation uses.

Polyak and Juditsky 1992, with the warm-up of TensorFlow's ExponentialMovingAverage, by which the
initial values are soon forgotten.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Tree = TypeVar("Tree")


def moving_average(
    average: Tree, variables: Tree, step: Int[Array, ""] | int, *, decay: float
) -> Tree:
    """The EMA after update `step`, counted from 0; decays by min(decay, (1 + step)/(10 + step))."""
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: new + kept * (old - new), average, variables)
