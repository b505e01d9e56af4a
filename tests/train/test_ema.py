"""The moving average follows fast at first, then slowly, and is what a state shows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssd_jax.sharding import make_mesh
from ssd_jax.train.ema import moving_average
from ssd_jax.train.state import create_state, state_shapes

VARIABLES = {"params": {"kernel": np.ones((8, 2), np.float32)}, "batch_stats": {}}


def test_the_average_of_a_constant_is_the_constant():
    assert float(moving_average(jnp.array(3.0), jnp.array(3.0), 7, decay=0.999)) == 3.0


def test_the_weights_of_the_past_by_hand():
    average = jnp.array(0.0)
    for step, value in enumerate((1.0, 2.0, 4.0)):  # 1/10, 2/11, then the decay of 0.2 < 3/12
        average = moving_average(average, jnp.array(value), step, decay=0.2)
    first = 0.9 * 1.0
    second = 2 / 11 * first + 9 / 11 * 2.0
    assert float(average) == pytest.approx(0.2 * second + 0.8 * 4.0, rel=1e-6)


def test_a_state_shows_its_average_and_keeps_what_it_trains():
    state = create_state(VARIABLES, optax.sgd(0.1), make_mesh(), sharding="fsdp", averaged=True)
    assert state.average["params"]["kernel"].sharding == state.params["kernel"].sharding
    moved = state.replace(params={"kernel": state.params["kernel"] + 1})
    np.testing.assert_array_equal(
        moved.variables["params"]["kernel"], VARIABLES["params"]["kernel"]
    )
    again = state.restored(moved.variables, moved.training)
    jax.tree.map(np.testing.assert_array_equal, again, moved)
    fresh = moved.beginning_with({"params": moved.params, "batch_stats": {}})
    np.testing.assert_array_equal(fresh.variables["params"]["kernel"], moved.params["kernel"])


def test_an_average_that_starts_anew_is_a_copy():
    # A state is donated, and no array can be twice.
    state = create_state(VARIABLES, optax.sgd(0.1), make_mesh(), averaged=True)
    fresh = state.beginning_with({"params": state.params, "batch_stats": {}})
    assert fresh.average["params"]["kernel"] is not fresh.params["kernel"]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_the_shapes_of_a_state_are_those_of_the_state(sharding, averaged):
    words = {"sharding": sharding, "averaged": averaged}
    optimizer, mesh = optax.adam(0.1), make_mesh()
    state = create_state(VARIABLES, optimizer, mesh, **words)
    shapes = state_shapes(VARIABLES, optimizer, mesh, **words)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, array in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)


def test_a_state_without_average_shows_what_it_trains():
    state = create_state(VARIABLES, optax.sgd(0.1), make_mesh())
    assert state.variables["params"] is state.params
    assert set(state.training) == {"step", "opt_state"}
    assert state.beginning_with(state.variables).average is None
