"""Single layers against MXNet's operators; the vectors are NCHW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle.reference import read_vector, vectors

from ssd_jax.models.layers import GroupedBatchNorm, L2Normalize
from ssd_jax.models.pooling import max_pool
from ssd_jax.ops.losses import multibox_loss
from ssd_jax.types import Targets

OPS = vectors("ops")
POOLS = {
    "pool22_valid": {"window": 2, "stride": 2},
    "pool22_full": {"window": 2, "stride": 2, "round_up": True},
    "pool33s1": {"window": 3, "stride": 1, "padding": 1},
    "pool33s2": {"window": 3, "stride": 2, "padding": 1},
}


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", OPS)
@pytest.mark.parametrize("fix_gamma", [False, True])
def test_batch_norm(path, fix_gamma):
    """In evaluation, in training with what it keeps, and backwards; epsilon is the reference's."""
    start = f"bn_fix{int(fix_gamma)}_"
    vector = {key.removeprefix(start): array for key, array in read_vector(path).items()}
    layer = GroupedBatchNorm(epsilon=2e-5, momentum=0.9, use_scale=not fix_gamma)
    params = {"bias": vector["beta"]} | ({} if fix_gamma else {"scale": vector["gamma"]})
    stats = {word: vector[word] for word in ("mean", "var")}
    x, upstream = nhwc(vector["x"]), nhwc(vector["ograd"])

    @jax.jit
    def run(params, x):
        variables = {"params": params, "batch_stats": stats}
        (y, state), backward = jax.vjp(
            lambda params, x: layer.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            ),
            params,
            x,
        )
        gradients = backward((upstream, jax.tree.map(jnp.zeros_like, state)))
        return layer.apply(variables, x, train=False), y, state["batch_stats"], gradients

    evaluated, trained, kept, (d_params, d_x) = run(params, x)
    assert_close(evaluated, nhwc(vector["infer"]))
    assert_close(trained, nhwc(vector["train"]))
    assert_close(kept["mean"], vector["new_mean"])
    assert_close(kept["var"], vector["new_var"])
    assert_close(d_x, nhwc(vector["dx"]))
    assert_close(d_params["bias"], vector["dbeta"])
    assert_close(d_params.get("scale", 0), vector["dgamma"])


@pytest.mark.parametrize("path", OPS)
@pytest.mark.parametrize("kind", POOLS)
def test_max_pool(path, kind):
    vector = read_vector(path)
    sizes = [key.removeprefix(f"{kind}_") for key in vector if key.startswith(f"{kind}_")]
    assert sizes
    for size in sizes:
        got = max_pool(nhwc(vector[f"pool_x_{size}"]), **POOLS[kind])
        np.testing.assert_array_equal(got, nhwc(vector[f"{kind}_{size}"]))


@pytest.mark.parametrize("path", OPS)
def test_l2_normalization(path):
    vector = read_vector(path)
    x, y = nhwc(vector["l2_x"]), nhwc(vector["l2_y"])
    scale = jnp.full(x.shape[-1], 20.0)
    assert_close(L2Normalize().apply({"params": {"scale": scale}}, x), 20 * y)


@pytest.mark.parametrize("path", OPS)
def test_smooth_l1(path):
    """The box loss of one positive anchor that is wrong in one coordinate, and its slope."""
    vector = read_vector(path)
    errors, losses, slopes = (vector[f"sl1_{letter}"] for letter in "xyg")
    one = jnp.ones(1, bool)
    targets = Targets(jnp.zeros((1, 4)), jnp.ones(1, int), one, ~one)

    def box_loss(error):
        deltas = jnp.zeros((1, 4)).at[0, 0].set(error)
        return multibox_loss(deltas, jnp.zeros((1, 2)), targets, jnp.zeros((1, 4))).box_loss

    got = jax.jit(jax.vmap(jax.value_and_grad(box_loss)))(jnp.asarray(errors))
    assert_close(got, (losses, slopes))
