"""What is left of a step that was not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.data.shapes import write_shapes
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.train import divergence
from ssd_jax.train.divergence import _annotated, not_finite_groups
from ssd_jax.train.state import TrainState


def test_arrays_that_are_not_finite_are_counted_by_group():
    fine, broken = jnp.ones(2), jnp.array([1.0, jnp.inf])
    params = {
        "backbone": {"a": {"kernel": fine, "bias": broken}, "b": {"bias": broken * 0}},
        "heads": {"kernel": fine},
    }
    assert not_finite_groups(params) == {"backbone": 2, "heads": 0}
    assert not_finite_groups({}) == {}


def test_boxes_of_an_image_of_unknown_size_are_parts_of_its_sides(tmp_path):
    write_shapes(tmp_path, train=1, val=1, seed=0, image_size=64)
    source = open_voc(tmp_path, ("train",))
    source.annotations = source.annotations._replace(sizes=np.zeros((1, 2), int))
    (name,) = source.names
    told = _annotated(source, name)
    assert (told["width"], "boxes_xyxy_px" in told) == (None, False)
    np.testing.assert_array_equal(told["boxes_xyxy"], source.annotations.boxes)


@pytest.mark.parametrize("clip_norm", [None, 5.0])
@pytest.mark.parametrize("trained", [False, True])
def test_the_message_names_what_is_not_finite_the_images_of_all_and_the_options(
    trained, clip_norm, tmp_path, monkeypatch
):
    write_shapes(tmp_path, train=1, val=1, seed=0, image_size=64)
    source = open_voc(tmp_path, ("train",))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(divergence, "exchange", lambda names: [names, ["of_process_1"]])
    if trained:
        (tmp_path / "checkpoints/4").mkdir(parents=True)
    values = {"loss": 3.9e21, "gradient_norm": float("nan"), "lr": 0.5}
    state = TrainState(jnp.int32(6), {}, {}, ())
    message = str(
        divergence.divergence(
            5, source.names, values, state,
            workdir=tmp_path, source=source, learning_rate=0.5, clip_norm=clip_norm,
        )
    )  # fmt: skip
    assert message.startswith("step 5: gradient_norm nan, so training stops (loss 3.9e+21, lr 0.5;")
    assert f"Images of the batch: {source.names[0]}, of_process_1. " in message
    assert "nonfinite.json (of the other processes: nonfinite_process_N.json)" in message
    change = " --change optimizer.learning_rate" if trained else ""
    assert f"(--config.optimizer.learning_rate=0.05{change})" in message
    # Who clips the gradient is not told to.
    assert (") or clip the gradient (--config.optimizer.clip_norm=10" in message) == (not clip_norm)
    assert ("clip" in message) == (not clip_norm)
