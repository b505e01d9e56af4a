"""The generated data set: a function of its seed, and a VOC folder that is what it says."""

import numpy as np
import pytest

from ssd_jax.data import shapes
from ssd_jax.data.decode import decode_example
from ssd_jax.data.sources.voc import open_voc


@pytest.fixture(scope="module")
def drawings():
    return [shapes.draw_shapes(3, index, image_size=96) for index in range(150)]


def test_image_is_a_function_of_seed_and_index(drawings):
    again, objects = shapes.draw_shapes(3, 1, image_size=96)
    np.testing.assert_array_equal(again, drawings[1][0])
    assert objects == drawings[1][1]
    other, _ = shapes.draw_shapes(4, 1, image_size=96)
    assert other.shape != again.shape or (other != again).any()


def test_what_is_drawn(drawings):
    objects = [thing for _, objects in drawings for thing in objects]
    relative = [
        (max(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) + 1) / min(image.shape[:2])
        for image, objects in drawings
        for thing in objects
    ]
    assert {image.shape[2] for image, _ in drawings} == {3}
    assert {80 <= side <= 96 for image, _ in drawings for side in image.shape[:2]} == {True}
    assert {thing.label for thing in objects} == {0, 1, 2}
    assert min(relative) < 0.12
    assert 0.5 < max(relative) < 0.85
    assert 0 < sum(not objects for _, objects in drawings) < 0.2 * len(drawings)
    assert 0 < sum(thing.difficult for thing in objects) < 0.3 * len(objects)


def test_boxes_lie_inside_and_have_area(drawings):
    for image, objects in drawings:
        for xmin, ymin, xmax, ymax in (thing.box for thing in objects):
            assert 1 <= xmin < xmax <= image.shape[1]
            assert 1 <= ymin < ymax <= image.shape[0]


def test_box_is_tight_around_what_is_visible():
    shown = np.zeros((20, 30), bool)
    shown[4:10, 7:9] = True
    assert shapes._tight_box(shown) == (8, 5, 9, 10)


def test_outlines_draw_their_class():
    """A ring has a hole, a cross covers its middle and no corner; the area is that of the mask."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(shapes.CLASSES):
        for _ in range(10):
            outlines = shapes._random_outlines(rng, label, 400, 400)
            outer = outlines[0] - outlines[0].min(axis=0) + 20  # whole, away from the border
            holes = [hole - outlines[0].min(axis=0) + 20 for hole in outlines[1:]]
            mask, area = shapes._filled([outer, *holes], 400, 400)
            low, high = outer.min(axis=0), outer.max(axis=0)
            x, y = np.round((low + high) / 2).astype(int)
            assert (mask[y, x] == 0) == (name == "ring")
            assert mask[int(low[1]) + 1, int(low[0]) + 1] == 0
            assert area == pytest.approx(mask.sum() / 255, rel=0.25)


def test_hidden_or_small_objects_are_difficult():
    def difficult(visible_side, whole_area, whole_height):
        shown = np.zeros((100, 120), bool)
        shown[:visible_side, :visible_side] = True
        whole = shapes._Whole(0, whole_area, (float(visible_side), whole_height))
        return shapes._described(whole, shown).difficult

    assert not difficult(20, 400.0, 20.0)
    assert difficult(20, 600.0, 20.0)
    assert difficult(13, 169.0, 13.0)
    assert not difficult(20, 400.0, 23.0)
    assert difficult(20, 400.0, 24.0)  # a tip without much area is hidden


def test_what_may_stand_together():
    """Two squares of 20 pixels; the second is drawn over the first."""

    def allowed(first, second, area=400.0):
        owner = np.zeros((60, 60), np.uint8)
        for number, (y, x) in enumerate([first, second], start=1):
            owner[y : y + 20, x : x + 20] = number
        return shapes._all_separable(owner, [400.0, area])

    assert allowed((0, 0), (30, 30))
    assert allowed((0, 0), (0, 12))
    assert not allowed((0, 0), (0, 5))  # a quarter of the first is left
    assert not allowed((0, 0), (5, 5))  # the boxes overlap by 0.39
    assert not allowed((0, 0), (0, 59), area=20.0)  # one pixel wide, at the border
    assert shapes._all_separable(np.zeros((9, 9), np.uint8), [])


def test_colour_does_not_tell_the_class(drawings):
    """The mean colours at the middle of the boxes differ less between classes than by chance."""
    colours = {label: [] for label in range(3)}
    for image, objects in drawings:
        for thing in objects:
            xmin, ymin, xmax, ymax = thing.box
            colours[thing.label].append(image[(ymin + ymax) // 2 - 1, (xmin + xmax) // 2 - 1])
    means = [np.mean(values, axis=0) for values in colours.values()]
    standard_error = 75 / np.sqrt(min(map(len, colours.values())))
    assert np.ptp(means, axis=0).max() < 5 * standard_error


def test_written_folder_reads_back(tmp_path):
    shapes.write_shapes(
        tmp_path,
        train=4,
        val=3,
        test=2,
        seed=3,
        image_size=96,
    )
    start = 0
    for split, count in (("train", 4), ("val", 3), ("test", 2)):
        source = open_voc(tmp_path, (split,), classes=shapes.CLASSES)
        assert source.names == tuple(f"{index:06d}" for index in range(start, start + count))
        for index in range(count):
            image, objects = shapes.draw_shapes(3, start + index, image_size=96)
            row = decode_example(source[index], index, canvas=96, max_objects=8)
            height, width = image.shape[:2]
            read = row.canvas[:height, :width].astype(int)
            assert np.abs(read - image).mean() < 10
            shown = row.valid
            assert row.labels[shown].tolist() == [thing.label for thing in objects]
            assert row.difficult[shown].tolist() == [thing.difficult for thing in objects]
            pixels = row.boxes[shown] * (width, height, width, height) + (1, 1, 0, 0)
            expected = np.reshape([thing.box for thing in objects], (-1, 4))
            np.testing.assert_allclose(pixels, expected, atol=1e-3)
        start += count


def test_image_set_that_was_not_asked_for_is_not_there(tmp_path):
    shapes.write_shapes(tmp_path, train=1, val=1, seed=0, image_size=96)
    written = sorted(path.name for path in (tmp_path / "ImageSets/Main").iterdir())
    assert written == ["train.txt", "val.txt"]
