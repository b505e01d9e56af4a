import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from ssd_jax.models.layers import ConvStyle, GroupedBatchNorm, L2Normalize, rectify
from ssd_jax.models.pooling import max_pool

BATCH, CHANNELS = 8, 3
IMAGES = jnp.asarray(np.random.default_rng(0).normal(2, 3, (BATCH, 4, 5, CHANNELS)), jnp.float32)
VARIABLES = {
    "params": {"scale": np.array([1.0, 2, 3], np.float32), "bias": np.ones(3, np.float32)},
    "batch_stats": {
        "mean": np.array([0.5, 1, 2], np.float32),
        "var": np.array([4.0, 1, 9], np.float32),
    },
}


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(layer, x, variables=VARIABLES, *, train=True):
    """The layer's output and its running statistics afterwards."""
    y, state = layer.apply(variables, x, train=train, mutable=["batch_stats"])
    return y, state["batch_stats"]


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


@pytest.mark.parametrize("group", [0, BATCH])
def test_one_group_is_the_batch_norm_of_flax(group):
    flax = nn.BatchNorm(use_running_average=False, momentum=0.7, epsilon=1e-3)
    expected = jax.jit(lambda x: flax.apply(VARIABLES, x, mutable=["batch_stats"]))(IMAGES)
    y, stats = apply(GroupedBatchNorm(group=group, momentum=0.7, epsilon=1e-3), IMAGES)
    assert_close((y, {"batch_stats": stats}), expected)


def test_two_groups_are_two_half_batches():
    whole, half = GroupedBatchNorm(group=BATCH // 2), GroupedBatchNorm()
    first, first_stats = apply(half, IMAGES[: BATCH // 2])
    second, second_stats = apply(half, IMAGES[BATCH // 2 :])
    mean_stats = jax.tree.map(lambda *both: np.mean(both, axis=0), first_stats, second_stats)
    assert_close(apply(whole, IMAGES), (np.concatenate([first, second]), mean_stats))


@pytest.mark.parametrize("group", [0, 1, 4])
def test_batch_norm_is_the_same_on_eight_devices(group, mesh_of_eight):
    def output_and_gradient(batch_axis, x):
        layer = GroupedBatchNorm(group=group, batch_axis=batch_axis)
        y, backward, stats = jax.vjp(lambda x: apply(layer, x), x, has_aux=True)
        if batch_axis:
            stats = jax.lax.pmean(stats, batch_axis)
        return y, stats, *backward(jnp.sin(x))

    cut, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        functools.partial(output_and_gradient, "data"),
        mesh=mesh_of_eight,
        in_specs=cut,
        out_specs=(cut, whole, cut),
    )
    assert_close(jax.jit(sharded)(IMAGES), output_and_gradient(None, IMAGES))


@pytest.mark.parametrize(("frozen", "training"), [(True, True), (True, False), (False, False)])
def test_running_statistics_are_constants_when_frozen_and_in_evaluation(frozen, training):
    layer = GroupedBatchNorm(group=3, frozen=frozen)
    y, stats = apply(layer, IMAGES, train=training)
    mean, var = np.array([0.5, 1, 2]), np.array([4.0, 1, 9])
    assert_close(y, (np.asarray(IMAGES) - mean) / np.sqrt(var + 1e-5) * np.array([1.0, 2, 3]) + 1)
    assert_close(stats, VARIABLES["batch_stats"])


def test_scale_and_bias_of_a_frozen_batch_norm_still_train():
    @jax.jit
    @jax.grad
    def gradient(params):
        variables = {**VARIABLES, "params": params}
        return GroupedBatchNorm(frozen=True).apply(variables, IMAGES, train=True).sum()

    got = gradient(VARIABLES["params"])
    np.testing.assert_array_equal(got["bias"], IMAGES.size / CHANNELS)
    assert np.all(np.asarray(got["scale"]) != 0)


def test_batch_norm_without_scale_is_batch_norm_of_scale_one():
    variables = {**VARIABLES, "params": {"bias": VARIABLES["params"]["bias"]}}
    ones = {**VARIABLES, "params": {**VARIABLES["params"], "scale": np.ones(3, np.float32)}}
    got = apply(GroupedBatchNorm(use_scale=False), IMAGES, variables)
    assert_close(got, apply(GroupedBatchNorm(), IMAGES, ones))


@pytest.mark.parametrize(("round_up", "columns"), [(False, 2), (True, 3)])
def test_max_pool_rounds_the_side_of_a_map_down_or_up(round_up, columns):
    x = jnp.arange(20.0).reshape(1, 4, 5, 1) - 30
    got = max_pool(x, window=2, stride=2, round_up=round_up)[0, :, :, 0]
    np.testing.assert_array_equal(got, np.array([[-24, -22, -21], [-14, -12, -11]])[:, :columns])


def test_batch_norm_keeps_bfloat16_but_takes_its_statistics_in_float32():
    # Around 1000 the step of bfloat16 is 4; its mean of squares would not have a digit of the
    # variance left.
    x = (1000 + IMAGES).astype(jnp.bfloat16)
    y, stats = apply(GroupedBatchNorm(momentum=0.0), x)
    assert y.dtype == jnp.bfloat16
    exact = x.astype(np.float32)
    np.testing.assert_allclose(stats["mean"], exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], exact.var((0, 1, 2)), rtol=0.05)


def test_l2_normalize_gives_every_pixel_the_length_of_the_scale():
    y, variables = jax.jit(lambda x: L2Normalize().init_with_output(jax.random.key(0), x))(IMAGES)
    np.testing.assert_array_equal(variables["params"]["scale"], [20, 20, 20])
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 20, rtol=1e-5)
    scale = jnp.array([20.0, 40, 60])
    scaled = jax.jit(lambda x: L2Normalize().apply({"params": {"scale": scale}}, x))(IMAGES)
    np.testing.assert_allclose(scaled, np.asarray(y) * [1, 2, 3], rtol=1e-5)


def test_l2_normalize_of_zeros_is_zero_with_a_finite_gradient():
    @jax.jit
    @jax.value_and_grad
    def total(x):
        return L2Normalize().apply({"params": {"scale": jnp.ones(CHANNELS)}}, x).sum()

    value, gradient = total(jnp.zeros((1, 1, 1, CHANNELS)))
    assert value == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("width", "full", "channels"),
    [(1.0, 64, 64), (0.5, 64, 32), (0.3, 64, 16), (0.35, 64, 24), (1 / 64, 64, 8)],
)
def test_width_rounds_to_multiples_of_eight(width, full, channels):
    assert ConvStyle(width=width).channels(full) == channels


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_relu_has_values_and_gradient_of_jax(dtype):
    x = jnp.asarray([-2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf], dtype)
    for function in (jax.nn.relu, rectify):
        y, pull = jax.vjp(function, x)
        np.testing.assert_array_equal(y, [0, 0, 0, x[3], 3, jnp.inf])
        np.testing.assert_array_equal(pull(jnp.full_like(x, 5))[0], [0, 0, 0, 5, 5, 5])


def test_the_gradient_of_relu_asks_the_result():
    equations = jax.make_jaxpr(lambda x: jax.vjp(rectify, x)[1](x))(jnp.ones(3)).eqns
    (result,) = (each.outvars[0] for each in equations if "custom_jvp" in each.primitive.name)
    (asked,) = (each.invars[0] for each in equations if each.primitive.name == "eq")
    assert asked is result
