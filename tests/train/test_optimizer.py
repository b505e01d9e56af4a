"""Schedules and optimizers against their textbook updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.train.optimizer import build_optimizer, decay_mask, one_cycle_schedule, step_schedule

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


def test_warm_up_is_linear_and_ends_at_the_full_rate():
    schedule = step_schedule(1.0, warmup_steps=4)
    values = [float(schedule(step)) for step in range(6)]
    np.testing.assert_allclose(values, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-6)


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


def test_weight_decay_spares_biases_unless_asked():
    assert decay_mask(PARAMS, "kernels") == {"conv": {"kernel": True, "bias": False}}
    assert decay_mask(PARAMS, "all") == {"conv": {"kernel": True, "bias": True}}


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
    with pytest.raises(ValueError, match="expected sgd or adamw"):
        build_optimizer(lambda _: 1.0, name="adam")
