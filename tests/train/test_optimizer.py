"""Schedules and optimizers against their textbook updates."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.train.optimizer import (
    KERNELS_ONLY,
    OPTIMIZERS,
    build_optimizer,
    cosine_schedule,
    multipliers,
    one_cycle_schedule,
    step_schedule,
)

PARAMS = {"conv": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0])}}
GRADIENT = {"conv": {"kernel": jnp.array([0.5, 0.25]), "bias": jnp.array([-1.0])}}


def updated(optimizer, steps):
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENT, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params["conv"]


def test_step_schedule_drops_at_its_steps():
    schedule = step_schedule(1.0, decay_steps=(10, 20), decay_factor=0.1)
    values = [float(schedule(step)) for step in (0, 9, 10, 19, 20, 99)]
    np.testing.assert_allclose(values, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    both_at_once = step_schedule(1.0, decay_steps=(3, 3), decay_factor=0.1)
    assert float(both_at_once(3)) == pytest.approx(0.01)


def test_warm_up_is_linear_and_ends_at_the_full_rate():
    schedule = step_schedule(1.0, warmup_steps=4)
    values = [float(schedule(step)) for step in range(6)]
    np.testing.assert_allclose(values, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-6)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="warmup_steps: got 1000, expected at most the 4 steps"):
        cosine_schedule(1.0, total_steps=4, warmup_steps=1000)
    assert cosine_schedule(1.0, total_steps=4, warmup_steps=4)(3) == 1


def test_cosine_rises_linearly_and_falls_to_nothing():
    schedule = cosine_schedule(1.0, total_steps=13, warmup_steps=4)
    values = np.array([float(schedule(step)) for step in range(13)])
    expected = 0.5 + 0.5 * np.cos(np.pi * np.arange(10) / 10)
    np.testing.assert_allclose(values, [0.25, 0.5, 0.75, *expected], atol=1e-6)
    without = cosine_schedule(1.0, total_steps=3)
    np.testing.assert_allclose(
        [float(without(step)) for step in range(3)],
        0.5 + 0.5 * np.cos(np.pi * np.arange(1, 4) / 4),
        rtol=1e-6,
    )


def test_one_cycle_rises_to_its_peak_and_falls():
    schedule = one_cycle_schedule(1.0, total_steps=100)
    values = np.array([float(schedule(step)) for step in range(100)])
    assert values.argmax() == 30
    assert values[30] == pytest.approx(1.0)
    assert values[-1] < 1e-3


def test_sgd_is_momentum_on_the_gradient_with_decay():
    lr, momentum, decay = 0.1, 0.9, 0.01
    optimizer = build_optimizer(lambda _: lr, name="sgd", momentum=momentum, weight_decay=decay)
    kernel, bias = np.array([1.0, -2.0]), 3.0
    velocity_kernel, velocity_bias = 0.0, 0.0
    for _ in range(3):
        velocity_kernel = momentum * velocity_kernel + np.array([0.5, 0.25]) + decay * kernel
        velocity_bias = momentum * velocity_bias - 1.0
        kernel, bias = kernel - lr * velocity_kernel, bias - lr * velocity_bias
    got = updated(optimizer, 3)
    np.testing.assert_allclose(got["kernel"], kernel, rtol=1e-6)
    np.testing.assert_allclose(got["bias"], [bias], rtol=1e-6)


def test_the_rate_in_the_momentum_outlives_a_drop_of_the_rate():
    schedule = step_schedule(0.1, decay_steps=(1,), decay_factor=0.1)
    optimizer = build_optimizer(
        schedule, momentum=0.9, learning_rate_in_momentum=True, weight_decay=0.5
    )
    got = updated(optimizer, 2)
    first, second = 0.1, 0.9 * 0.1 + 0.01  # the second step still carries the first at its rate
    np.testing.assert_allclose(got["bias"], [3 + first + second], rtol=1e-6)
    kernel, velocity = np.array([1.0, -2.0]), 0.0
    for rate in (0.1, 0.01):
        velocity = 0.9 * velocity - rate * (np.array([0.5, 0.25]) + 0.5 * kernel)
        kernel = kernel + velocity
    np.testing.assert_allclose(got["kernel"], kernel, rtol=1e-6)


@pytest.mark.parametrize(
    ("rules", "kernel", "bias"),
    [
        ((), 1.0, 1.0),
        ((("*/kernel", 2.0),), 2.0, 1.0),
        ((("params/conv/*", 0.5), ("*/bias", 0.0)), 0.5, 0.0),
        ((("*/bias", 0.0), ("*", 3.0)), 3.0, 3.0),
        (KERNELS_ONLY, 1.0, 0.0),
    ],
)
def test_the_last_pattern_that_matches_a_path_gives_its_factor(rules, kernel, bias):
    assert multipliers(PARAMS, rules) == {"conv": {"kernel": kernel, "bias": bias}}


def test_a_pattern_that_matches_nothing_is_refused_with_a_near_path():
    optimizer = build_optimizer(lambda _: 0.1, rate_multipliers=(("*/cnov/bias", 0.0),))
    with pytest.raises(UserError, match=r"'\*/cnov/bias', .* such as params/conv/bias"):
        optimizer.init(PARAMS)


@pytest.mark.parametrize(
    "settings",
    [*({"name": name} for name in OPTIMIZERS), {"learning_rate_in_momentum": True}],
    ids=str,
)
def test_rate_multipliers_scale_the_steps_of_a_parameter(settings):
    rules = (("*/kernel", 0.0), ("*/bias", 2.0))
    plain, scaled = (
        updated(build_optimizer(lambda _: 0.1, **settings, **words), 3)
        for words in ({}, {"rate_multipliers": rules})
    )
    np.testing.assert_array_equal(scaled["kernel"], PARAMS["conv"]["kernel"])
    np.testing.assert_allclose(scaled["bias"] - 3, 2 * (plain["bias"] - 3), rtol=1e-5)


def test_weight_decay_spares_biases_unless_asked():
    decay = functools.partial(build_optimizer, lambda _: 0.1, momentum=0.0)
    spared, pulled, doubled, without = (
        updated(optimizer, 1)
        for optimizer in (
            decay(weight_decay=0.5),
            decay(weight_decay=0.5, decay_multipliers=()),
            decay(weight_decay=0.5, decay_multipliers=(("*/bias", 2.0),)),
            decay(weight_decay=0.0),
        )
    )
    np.testing.assert_array_equal(spared["bias"], without["bias"])
    for decayed, factor in ((pulled, 1), (doubled, 2)):
        difference = without["bias"] - decayed["bias"]
        np.testing.assert_allclose(difference, [factor * 0.1 * 0.5 * 3], rtol=1e-5)
        np.testing.assert_array_equal(decayed["kernel"], spared["kernel"])


def test_adamw_decays_apart_from_the_gradient():
    with_decay, without = (
        updated(build_optimizer(lambda _: 0.1, name="adamw", weight_decay=decay), 1)
        for decay in (0.5, 0.0)
    )
    difference = without["kernel"] - with_decay["kernel"]
    np.testing.assert_allclose(difference, 0.1 * 0.5 * PARAMS["conv"]["kernel"], rtol=1e-4)
    np.testing.assert_array_equal(with_decay["bias"], without["bias"])


def test_the_gradient_is_clipped_by_its_global_norm():
    norm = np.sqrt(0.5**2 + 0.25**2 + 1)
    optimizer = build_optimizer(lambda _: 1.0, weight_decay=0.0, clip_norm=norm / 2)
    np.testing.assert_allclose(updated(optimizer, 1)["bias"], [3.5], rtol=1e-6)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match="got 'adagrad', expected one of sgd, adamw, adam,"):
        build_optimizer(lambda _: 1.0, name="adagrad")


# What MXNet 1.x computes for one number, as its sources have it.


def mxnet_adam(weight, gradients, rate, decay):
    m = v = 0.0
    for t, gradient in enumerate(gradients, start=1):
        gradient = gradient + decay * weight
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        corrected = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weight -= corrected * m / (math.sqrt(v) + 1e-8)
        yield weight


def mxnet_rmsprop(weight, gradients, rate, decay):
    n = 0.0
    for gradient in gradients:
        gradient = gradient + decay * weight
        n = 0.9 * n + 0.1 * gradient**2
        weight -= rate * gradient / math.sqrt(n + 1e-8)
        yield weight


def mxnet_adadelta(weight, gradients, rate, decay):
    squares = deltas = 0.0
    for gradient in gradients:
        squares = 0.9 * squares + 0.1 * gradient**2
        delta = math.sqrt(deltas + 1e-5) / math.sqrt(squares + 1e-5) * gradient
        deltas = 0.9 * deltas + 0.1 * delta**2
        weight -= rate * (delta + decay * weight)
        yield weight


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize(
    ("name", "formula", "rate"),
    [
        ("adam", mxnet_adam, 0.01),
        ("rmsprop", mxnet_rmsprop, 0.01),
        ("adadelta", mxnet_adadelta, 1.0),
    ],
)
def test_the_optimizers_of_mxnet(name, formula, rate, size):
    gradients = [0.5 * size, -0.25 * size, 0.75 * size, 0.5 * size]
    decay = 0.1 * size
    optimizer = build_optimizer(lambda _: rate, name=name, weight_decay=decay, decay_multipliers=())
    weight = {"kernel": jnp.array([0.3])}
    state = optimizer.init(weight)
    for gradient, expected in zip(gradients, formula(0.3, gradients, rate, decay), strict=True):
        updates, state = optimizer.update({"kernel": jnp.array([gradient])}, state, weight)
        moved = expected - 0.3
        weight = jax.tree.map(jnp.add, weight, updates)
        # The weight itself is rounded to float32.
        np.testing.assert_allclose(weight["kernel"] - 0.3, moved, rtol=1e-4, atol=6e-8)


def test_the_gradient_is_scaled_before_it_is_clipped():
    norm = np.sqrt(0.5**2 + 0.25**2 + 1)
    plain = {"momentum": 0.0, "weight_decay": 0.0, "gradient_scale": 0.5}
    scaled = build_optimizer(lambda _: 1.0, **plain)
    clipped = build_optimizer(lambda _: 1.0, clip_norm=norm / 4, **plain)
    np.testing.assert_allclose(updated(scaled, 1)["bias"], [3.5], rtol=1e-6)
    np.testing.assert_allclose(updated(clipped, 1)["bias"], [3.25], rtol=1e-6)
