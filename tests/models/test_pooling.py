"""The gradient of max pooling is XLA's, with and without ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssd_jax.models.pooling import max_pool


@pytest.mark.parametrize(
    ("words", "padding"),
    [
        ({"window": 2, "stride": 2}, ((0, 0), (0, 0))),
        ({"window": 2, "stride": 2, "round_up": True}, ((0, 1), (0, 0))),
        ({"window": 3, "stride": 1, "padding": 1}, ((1, 1), (1, 1))),
        ({"window": 3, "stride": 2, "padding": 1}, ((1, 1), (1, 1))),
    ],
)
@pytest.mark.parametrize("levels", [2, 1000])
def test_gradient_is_that_of_xla(words, padding, levels):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, levels, (2, 11, 8, 3)), jnp.float32)
    sides, strides = (words["window"],) * 2, (words["stride"],) * 2
    y, pull = jax.vjp(lambda x: max_pool(x, **words), x)
    expected, expected_pull = jax.vjp(lambda x: nn.max_pool(x, sides, strides, padding), x)
    np.testing.assert_array_equal(y, expected)
    gradient = jnp.asarray(rng.standard_normal(y.shape), jnp.float32)
    np.testing.assert_allclose(pull(gradient)[0], expected_pull(gradient)[0], atol=1e-5)


def test_nothing_is_searched_or_scattered():
    # On GPUs a scatter may also add in another order each time.
    def gradient(x):
        return jax.grad(lambda x: max_pool(x, window=3, stride=2).sum())(x)

    traced = jax.jit(gradient).trace(jnp.zeros((1, 5, 5, 1)))
    for platform in ("cpu", "cuda"):
        assert "scatter" not in traced.lower(lowering_platforms=(platform,)).as_text()
