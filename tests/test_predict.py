"""What a detector takes, and the mirrored view: the same boxes, found from the other side."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import QUICK
from tiny import tiny_config

from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables
from ssd_jax.network import build_network
from ssd_jax.ops.boxes import decode
from ssd_jax.predict import OnPictures, predicting_anchors, run_network
from ssd_jax.types import Detections


def test_a_mirrored_anchor_is_the_anchor_of_the_mirrored_image():
    anchors = np.array([[0.125, 0.25, 0.5, 0.75]], np.float32)
    both = predicting_anchors(anchors, flip=True)
    np.testing.assert_array_equal(both, [[0.125, 0.25, 0.5, 0.75], [0.5, 0.25, 0.875, 0.75]])
    np.testing.assert_array_equal(predicting_anchors(anchors), anchors)


def test_both_views_of_a_mirrored_image_are_the_mirrored_boxes_of_the_views(shapes):
    network = build_network(tiny_config(shapes), 3)
    variables = init_variables(network.model, 64, seed=0)
    anchors = predicting_anchors(network.anchors, flip=True)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def views(images):
        deltas, scores = run_network(
            network.model, variables, images, mean=(0.0,) * 3, std=(1.0,) * 3, flip=True
        )
        return decode(deltas[0], anchors), scores[0]

    image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    (boxes, scores), (mirrored, mirrored_scores) = views(image), views(image[:, :, ::-1])
    count = len(network.anchors)
    swapped = jnp.roll(mirrored, count, axis=0)  # the view that is mirrored twice comes first
    expected = jnp.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    np.testing.assert_allclose(swapped, expected, atol=1e-4)
    np.testing.assert_allclose(jnp.roll(mirrored_scores, count, axis=0), scores, atol=1e-4)
    assert not np.allclose(scores[:count], scores[count:], atol=1e-2)


class Echo(OnPictures):
    """Detects nothing, and keeps the canvas that it was shown."""

    canvas = 8

    def predict(self, canvas, extent):
        self.seen = canvas[0], tuple(extent[0])
        return Detections(*(np.zeros((1, 0)),) * 3, np.zeros((1, 0), bool))


def test_a_picture_is_bytes_a_path_or_an_array(tmp_path):
    rgb = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), rgb[..., ::-1])
    for picture in (path.read_bytes(), path, str(path), rgb):
        echo = Echo()
        echo([picture])
        canvas, extent = echo.seen
        assert extent == (5, 7)
        np.testing.assert_array_equal(canvas[:5, :7], rgb)
        assert not canvas[5:].any()
        with pytest.raises(UserError, match=r"images: got a single .* detector\(\[image\]\)"):
            echo(picture)


class Mean(OnPictures):
    """Detects one box a picture, as bright as the picture is; and counts its batches."""

    canvas, batches = 4, 0

    def predict(self, canvas, extent):
        self.batches += 1
        scores = canvas.mean(axis=(1, 2, 3))[:, None]
        boxes, labels = np.zeros((*scores.shape, 4)), np.zeros(scores.shape, int)
        return Detections(boxes=boxes, scores=scores, labels=labels, valid=scores > 0)


def test_batches_find_what_single_pictures_do():
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in (3, 0, 7, 5, 1)]
    detector = Mean()
    found = detector(pictures, batch_size=2)
    assert detector.batches == 3
    assert [each.scores.tolist() for each in found] == [[3], [], [7], [5], [1]]
    jax.tree.map(np.testing.assert_array_equal, found, detector(pictures))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_picture(batch_size):
    with pytest.raises(UserError, match=f"batch_size: got {batch_size}, expected at least 1"):
        Mean()([], batch_size=batch_size)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.jpg", "nowhere.jpg: no such file"),
        (np.zeros((3, 8, 8), np.uint8), r"image 0: got an array of uint8 .* \(3, 8, 8\), expected"),
        (np.zeros((8, 8, 3)), "image 0: got an array of float64"),
        (None, "image 0: got NoneType, expected the bytes"),
    ],
)
def test_what_is_no_picture_is_told(picture, message):
    with pytest.raises(UserError, match=message):
        Echo()([picture])
