"""One training step: what it learns from, and what it does not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.ops.augment import Augmentation
from ssd_jax.train.step import augment_batch, batch_loss
from ssd_jax.types import Batch

ANCHORS = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.5, 0.5, 1]], np.float32)


def batch_of(valid):
    """Two images with up to one object each, which the first and second anchor fit exactly."""
    size = len(valid)
    return Batch(
        canvas=jnp.asarray(np.random.default_rng(0).integers(0, 256, (size, 8, 8, 3), np.uint8)),
        extent=jnp.full((size, 2), 8),
        size=jnp.full((size, 2), 8),
        boxes=jnp.asarray(ANCHORS[:size, None]),
        labels=jnp.zeros((size, 1), jnp.int32),
        difficult=jnp.zeros((size, 1), bool),
        valid=jnp.asarray(valid)[:, None],
        sample_id=jnp.arange(size),
        real=jnp.ones(size, bool),
    )


def loss_of(valid, logits=0.0, box_weight=1.0):
    batch = batch_of(valid)
    class_logits = jnp.zeros((len(valid), 3, 2)).at[..., 0].set(logits)
    deltas = jnp.ones((len(valid), 3, 4))
    return batch_loss(class_logits, deltas, batch, ANCHORS, box_weight=box_weight)


def test_the_loss_is_divided_by_the_positives_of_the_whole_batch():
    one, _ = loss_of([True])
    two, _ = loss_of([True, True])
    assert float(one) == pytest.approx(float(two), rel=1e-6)
    # One positive and two negatives at equal odds; four coordinates that are off by 1.
    assert float(one) == pytest.approx(3 * np.log(2) + 4 * 0.5, rel=1e-6)


def test_the_box_loss_is_weighted():
    _, metrics = loss_of([True])
    weighted, _ = loss_of([True], box_weight=3.0)
    assert float(weighted) == pytest.approx(
        float(metrics["class_loss"] + 3 * metrics["box_loss"]), rel=1e-6
    )


def test_images_without_objects_are_negatives_and_their_loss_is_finite():
    loss, metrics = loss_of([False, False])
    assert float(loss) == pytest.approx(2 * 3 * np.log(2), rel=1e-6)
    assert float(metrics["box_loss"]) == 0.0
    assert float(loss_of([False, False], logits=50.0)[0]) == pytest.approx(0.0)


def test_a_sample_is_augmented_alike_whatever_its_neighbours():
    batch = batch_of([True, True, True])
    settings = {"seed": 3, "image_size": 8, "settings": Augmentation(), "fill": (0.0, 0.0, 0.0)}
    augment = jax.jit(lambda batch, step: augment_batch(batch, step, **settings))
    images, _ = augment(batch, 5)
    reversed_images, _ = augment(jax.tree.map(lambda x: x[::-1], batch), 5)
    np.testing.assert_array_equal(images, reversed_images[::-1])
    assert not np.array_equal(images, augment(batch, 6)[0])
