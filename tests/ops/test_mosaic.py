"""Mosaics: windows of a plane of four images, with the objects that lie in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.ops.mosaic import Mosaic, mosaic

SIDE = 8
# Images of one colour each, 0 to 3, with one object that fills the middle, and room for another.
IMAGES = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, SIDE, SIDE, 3))
BOXES = jnp.tile(jnp.array([[[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.0, 0.0]]]), (4, 1, 1))
VALID = jnp.array([[True, False]] * 4)
COLUMNS = {"labels": jnp.array([[5, 0], [6, 0], [7, 0], [8, 0]])}


def run(seed=0, **words):
    function = jax.jit(lambda keys: mosaic(
        keys, IMAGES, BOXES, VALID, COLUMNS, settings=Mosaic(**words)
    ))  # fmt: skip
    return jax.device_get(function(jax.random.split(jax.random.key(seed), 4)))


def test_the_widest_window_shows_all_four_at_half_their_size():
    images, boxes, valid, columns = run(probability=1.0, scale=(2.0, 2.0))
    half = SIDE // 2
    quarters = [images[0][:half, :half], images[0][:half, half:], images[0][half:, :half],
                images[0][half:, half:]]  # fmt: skip
    for colour, quarter in enumerate(quarters):
        assert (quarter == colour).all()
    corner = np.array([[0, 0], [0.5, 0], [0, 0.5], [0.5, 0.5]])
    middle = np.array([0.125, 0.125, 0.375, 0.375])
    for image in range(4):  # the window is the whole plane, whatever its key
        assert valid[image].tolist() == [True, False] * 4
        found = boxes[image][valid[image]]
        np.testing.assert_allclose(found, np.tile(corner, 2) + middle)
        assert columns["labels"][image][valid[image]].tolist() == [5, 6, 7, 8]


def test_objects_stay_with_their_pixels_in_any_window():
    shown = set()
    for seed in range(8):
        images, boxes, valid, columns = run(seed=seed, probability=1.0)
        for image in range(4):
            for box, label in zip(
                boxes[image][valid[image]], columns["labels"][image][valid[image]], strict=True
            ):
                assert (box >= 0).all()
                assert (box <= 1).all()
                x, y = ((box[:2] + box[2:]) / 2 * SIDE).astype(int)
                assert images[image][y, x, 0] == pytest.approx(label - 5)
            shown.add(int(valid[image].sum()))
    assert {1, 4} < shown  # from a single image's to all of them


def test_windows_reach_both_ends_of_the_plane():
    shown = set()
    for seed in range(16):
        images, *_ = run(seed=seed, probability=1.0, scale=(1.0, 1.0))
        shown |= {frozenset(np.unique(image).tolist()) for image in images}
    for half in ({0, 2}, {1, 3}, {0, 1}, {2, 3}):  # left, right, upper and lower
        assert any(colours <= half for colours in shown)


def test_without_a_chance_the_images_are_left_alone():
    images, boxes, valid, columns = run(probability=0.0)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(boxes[:, :2], BOXES)
    np.testing.assert_array_equal(columns["labels"][:, :2], COLUMNS["labels"])
    np.testing.assert_array_equal(valid, np.pad(VALID, ((0, 0), (0, 6))))
