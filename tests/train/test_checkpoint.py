"""Checkpoints: which are kept, which is chosen, and that they give back what was saved."""

import jax
import numpy as np
import optax
import pytest

from ssd_jax.errors import UserError
from ssd_jax.sharding import make_mesh
from ssd_jax.train.checkpoint import Checkpoints
from ssd_jax.train.state import create_state

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def state():
    variables = {"params": {"kernel": np.arange(6.0, dtype=np.float32)}, "batch_stats": {}}
    return create_state(variables, optax.adam(0.1), make_mesh())


def at_step(state, step):
    return state.replace(step=jax.device_put(np.int32(step), state.step.sharding))


@pytest.fixture
def saved(state, tmp_path):
    """Steps 1 to 5; 1, 2 and 4 were evaluated, 2 was the best."""
    measured = {1: 0.2, 2: 0.9, 4: 0.5}
    with Checkpoints(tmp_path, metric="map", keep_latest=2) as checkpoints:
        for step in range(1, 6):
            metrics = {"map": measured[step], "other": 1.0} if step in measured else None
            checkpoints.save(at_step(state, step), metrics, classes=CLASSES)
    return tmp_path


def test_the_latest_and_the_best_are_kept(saved):
    with Checkpoints(saved, metric="map") as checkpoints:
        assert checkpoints.latest_step() == checkpoints.select("last") == 5
        assert checkpoints.best_step() == checkpoints.select("best") == 2
        assert checkpoints.select("4") == 4
        with pytest.raises(UserError, match=r"got step '3', expected last, best or one of \[2, 4"):
            checkpoints.select("3")


def test_the_state_comes_back_whole(saved, state):
    with Checkpoints(saved, metric="map") as checkpoints:
        restored = checkpoints.restore(5, state, classes=CLASSES)
    assert int(restored.step) == 5
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(got, expected if expected.shape else got)
        assert got.sharding == expected.sharding


def test_a_network_of_another_shape_is_refused(saved, state):
    other = state.replace(params={"kernel": jax.numpy.zeros(7)})
    with (
        Checkpoints(saved, metric="map") as checkpoints,
        pytest.raises(UserError, match="does not fit this"),
    ):
        checkpoints.restore(5, other, classes=CLASSES)


def test_other_classes_are_refused(saved, state):
    with (
        Checkpoints(saved, metric="map") as checkpoints,
        pytest.raises(UserError, match=r"2 classes \(cat, dog\), the run has 1 \(cow\)"),
    ):
        checkpoints.restore(5, state, classes=("cow",))


def test_a_folder_without_checkpoints_says_what_to_do(tmp_path, state):
    with Checkpoints(tmp_path, metric="map") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="ssd-jax train"):
            checkpoints.select("last")


def test_without_an_evaluation_there_is_no_best(tmp_path, state):
    with Checkpoints(tmp_path, metric="map") as checkpoints:
        checkpoints.save(at_step(state, 1), None, classes=CLASSES)
        checkpoints.wait()
        with pytest.raises(UserError, match="none is the best"):
            checkpoints.select("best")
