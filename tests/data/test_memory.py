"""Sources of arrays, bytes and paths."""

import pathlib
import re

import cv2
import numpy as np
import pytest

from ssd_jax.data.decode import decode_image
from ssd_jax.data.doctor import check_before_training
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.memory import source_from_arrays
from ssd_jax.errors import DataError, UserError

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
PNG = cv2.imencode(".png", IMAGE[..., ::-1])[1].tobytes()
BOX = np.array([[0.25, 0.5, 0.75, 1.0]])
CLASSES = ["cat", "dog"]


def made(images=(IMAGE,), boxes=(BOX,), labels=((1,),), **words):
    return source_from_arrays(images, boxes, labels, CLASSES, **words)


def test_arrays_bytes_and_files_are_the_same_picture(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(PNG)
    source = made(
        [IMAGE, PNG, path], [BOX, [], BOX], [[1], [], [0]], difficult=[[True], [], [False]]
    )
    assert (source.classes, list(source.names)) == (("cat", "dog"), ["0", "1", "2"])
    assert source.object_counts.tolist() == [1, 0, 1]
    for example in (source[0], source[1], source[2]):
        canvas, extent, _ = decode_image(example.image, example.name, 30)
        assert extent == (20, 30)
        np.testing.assert_array_equal(canvas[:20], IMAGE)
    assert (source[0].name, source[2].name) == ("memory://0", str(path))
    assert (source[0].size, source[1].size) == ((20, 30), None)
    np.testing.assert_array_equal(source[0].boxes, BOX.astype(np.float32))
    assert (source[0].labels.tolist(), source[0].difficult.tolist()) == ([1], [True])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"images": [IMAGE / 255]}, r"images\[0\]: got float64\[20, 30, 3\], expected uint8\[hei"),
        ({"images": [IMAGE[..., 0]]}, r"images\[0\]: got uint8\[20, 30\]"),
        ({"boxes": []}, "boxes: got 0 entries, expected 1, one per image"),
        ({"boxes": [BOX[0]]}, r"boxes\[0\]: got float64\[4\], expected float\[N, 4\]"),
        ({"boxes": [BOX.astype(int)]}, r"boxes\[0\]: got int64\[1, 4\]"),
        ({"boxes": [BOX * 20]}, r"\[5\.0, 10\.0, 15\.0, 20\.0\], expected fractions .*Divide x by"),
        ({"labels": [[1, 0]]}, r"labels\[0\]: got int64\[2\], expected class ids, int\[1\]"),
        ({"labels": [[1.0]]}, r"labels\[0\]: got float64\[1\]"),
        ({"difficult": [[0]]}, r"difficult\[0\]: got int64\[1\], expected bool\[1\]"),
        ({"images": [PNG] * 2, "boxes": [BOX] * 2, "labels": [[0]] * 2, "names": ["a", "a"]},
         "names: got 'a' more than once"),
    ],
)  # fmt: skip
def test_other_types_shapes_and_units_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        made(**words)


def test_objects_that_cannot_be_used_are_errors_as_in_every_format():
    with pytest.raises(DataError, match=r"SSD134 image '0', object 1: unknown class '2'.*cat, dog"):
        made(labels=[[2]])
    with pytest.raises(DataError, match=r"SSD132 image 'x', object 1.*outside"):
        made(boxes=[BOX * 1.5], names=["x"])
    with pytest.raises(DataError, match="SSD103"):
        made([], [], [])


def test_the_doctor_remembers_nothing_of_what_is_in_memory(tmp_path):
    for image, found in ((PNG, {}), (PNG[:-20], {"SSD112": 1})):
        boxes = [BOX * 0.9, BOX, BOX * 0.5]
        skips = Problems("skip")
        source = made([image, PNG, IMAGE], boxes, [[0], [1], [0]], problems=skips)
        counts = check_before_training(source, tmp_path)[1].counts
        assert {code: n for code, n in counts.items() if code == "SSD112"} == found
    assert not list(tmp_path.iterdir())


def test_the_documented_block():
    text = (pathlib.Path(__file__).parents[2] / "docs/data.md").read_text()
    (block,) = re.findall(r"```python\n(# In memory.*?)```", text, re.DOTALL)
    names = {}
    exec(block, names)
    assert names["source"].describe().startswith("2 images, 1 object (cat 0, dog 1)")
