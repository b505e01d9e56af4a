"""The page about a data set is drawn for every set, also for odd ones."""

import cv2
import numpy as np
import pytest

from ssd_jax.data.sources.base import Problems, source_of_objects
from ssd_jax.visualize.data import MAX_BARS, plot_data

ANCHORS = np.array([(0.1, 0.1, 0.4, 0.4), (0.2, 0.0, 0.8, 1.2)])


def source(boxes, *, classes=1):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return source_of_objects(
        names=("one", "none"),
        sizes=np.zeros((2, 2), np.int32),
        object_counts=np.array([len(boxes), 0]),
        written=boxes,
        boxes=boxes,
        labels=np.arange(len(boxes)) % classes,
        difficult=np.arange(len(boxes)) % 3 == 1,
        classes=[f"class $ {number}" for number in range(classes)],
        read_image=lambda index: b"",
        locate=str,
        problems=Problems(),
        locate_object=lambda image, number: f"{image} {number}",
        label_text=str,
    )


ODD = [(0.1, 0.1, 0.4, 0.5), (0, 0, 0.001, 1), (0, 0.5, 1, 0.501), (0, 0, 1, 1)]


@pytest.mark.parametrize(
    ("data", "anchors"),
    [
        (source(ODD), ANCHORS),
        (source([]), ANCHORS),
        (source([(0.1, 0.1, 0.4, 0.5)] * 99, classes=MAX_BARS + 3), None),
    ],
    ids=("odd", "none", "many"),
)
def test_the_page_is_drawn(tmp_path, data, anchors):
    plot_data(data, tmp_path / "new/page.png", anchors=anchors, title="a set")
    page = cv2.imread(str(tmp_path / "new/page.png"))
    assert page.shape[0] > 1000
    assert (page[-1] == 255).all()  # nothing is cut off
    colours = {tuple(pixel) for pixel in page[::3, ::3].reshape(-1, 3).tolist()}
    blue, unreached = (0xB2, 0x72, 0x00), (0x00, 0x5E, 0xD5)
    assert blue in colours
    assert (unreached in colours) == (anchors is not None and len(data.annotations.labels) > 0)
