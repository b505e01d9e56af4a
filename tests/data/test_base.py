"""What all formats share: checks, subsets, combinations, the fingerprint."""

import numpy as np
import pytest

from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    combine,
    source_of_objects,
)
from ssd_jax.errors import DataError, UserError

WHOLE = (0.0, 0.0, 1.0, 1.0)


def source(*images, classes=("cat", "dog"), sizes=None, problems=None, prefix="") -> Source:
    """A source of images given as lists of (class name, box in parts of the image)."""
    objects = [thing for image in images for thing in image]
    boxes = np.array([box for _, box in objects], np.float64).reshape(-1, 4)
    return source_of_objects(
        names=tuple(f"{prefix}{index}" for index in range(len(images))),
        sizes=np.zeros((len(images), 2), np.int32) if sizes is None else np.array(sizes),
        object_counts=np.array([len(image) for image in images]),
        written=boxes,
        boxes=boxes,
        labels=class_ids([name for name, _ in objects], classes),
        difficult=np.array([name == "dog" for name, _ in objects], bool),
        classes=classes,
        read_image=lambda index: f"{prefix}bytes {index}".encode(),
        locate=lambda index: f"{prefix}file {index}",
        problems=problems or Problems(),
        locate_object=lambda image, number: f"image {image}, object {number}",
        label_text=lambda k: objects[k][0],
        files=(f"{prefix}container",),
    )


def test_an_example_is_a_row_of_the_columns():
    example = source([("cat", WHOLE)], [], [("dog", (0.5, 0, 1, 1)), ("cat", WHOLE)])[2]
    assert (example.name, example.image, example.size) == ("file 2", b"bytes 2", None)
    assert (example.labels.tolist(), example.difficult.tolist()) == ([1, 0], [True, False])
    np.testing.assert_array_equal(example.boxes, [(0.5, 0, 1, 1), WHOLE])
    assert example.boxes.dtype == np.float32


def test_the_size_tells_how_far_outside_is_too_far():
    a_pixel = [("cat", (-0.01, 0, 1.01, 1))]
    np.testing.assert_array_equal(source(a_pixel, sizes=[(50, 100)])[0].boxes, [WHOLE])
    with pytest.raises(DataError, match=r"SSD132 image 0, object 1.*2 pixels outside.*200 x 50"):
        source(a_pixel, sizes=[(50, 200)])
    with pytest.raises(DataError, match=r"SSD132.*0\.01 of the image side outside"):
        source(a_pixel)


@pytest.mark.parametrize(
    ("thing", "code"),
    [
        (("cat", (0, 0, np.nan, 1)), "SSD131"),
        (("cat", (0, 0, np.inf, 1)), "SSD131"),
        (("cat", (0.5, 0, 0.5, 1)), "SSD133"),
        (("cat", (0, 0.6, 1, 0.5)), "SSD133"),
        (("wolf", WHOLE), "SSD134"),
    ],
)
def test_what_cannot_be_used_is_refused_or_left_out(thing, code):
    images = [("cat", WHOLE), thing], [thing, ("dog", WHOLE)]
    with pytest.raises(DataError, match=f"{code} image 0, object 2"):
        source(*images)
    with pytest.raises(DataError, match=r"\. Do without$"):
        source(*images, problems=Problems(advice="Do without"))
    left = source(*images, problems=Problems("skip"))
    assert left.object_counts.tolist() == [1, 1]
    assert left.annotations.labels.tolist() == [0, 1]
    assert left.problems.counts == {code: 2}


def test_an_image_that_loses_all_its_boxes_is_no_background():
    flat = ("cat", (0.5, 0, 0.5, 1))
    images = [flat, flat], [("dog", WHOLE)], [("wolf", WHOLE)], [flat, ("wolf", WHOLE)], []
    left = source(*images, problems=Problems("skip"))
    # What shows other classes only, or nothing, is background.
    assert left.names == ["1", "2", "4"]
    assert left.object_counts.tolist() == [1, 0, 0]
    assert left.problems.counts == {"SSD133": 3, "SSD134": 2, "SSD136": 2}
    assert "SSD136 file 0: none of its 2 boxes" in str(left.problems.found[-2])


def test_why_nothing_is_left_is_told():
    flat = ("cat", (0.5, 0, 0.5, 1))
    left = source([flat, flat], [flat], problems=Problems("skip"))
    with pytest.raises(DataError, match="SSD103 data: 0 images") as error:
        check_not_empty(left, "data")
    told = str(error.value)
    assert "3 SSD133, first: image 0, object 1: box (0.5, 0, 0.5, 1) has no area" in told
    assert "; 2 SSD136, first: file 0: none of its 2 boxes can be used" in told
    with pytest.raises(DataError, match=r"with an object\. Use another split"):
        check_not_empty(source([]).take([]), "data")


def test_taken_images_keep_what_belongs_to_them():
    whole = source([("cat", WHOLE)], [], [("dog", WHOLE), ("cat", (0, 0, 0.5, 1))])
    part = whole.take([2, 0])
    assert (len(part), part.names) == (2, ["2", "0"])
    for ours, theirs in ((0, 2), (1, 0)):
        for mine, original in zip(part[ours], whole[theirs], strict=True):
            np.testing.assert_array_equal(mine, original)


def test_a_combination_is_one_source_after_the_other():
    parts = source([("cat", WHOLE)], []), source([("dog", WHOLE), ("cat", WHOLE)], prefix="b")
    both = combine(parts)
    assert (len(both), list(both.names)) == (3, ["0", "1", "b0"])
    assert both.object_counts.tolist() == [1, 0, 2]
    for mine, original in zip(both[2], parts[1][0], strict=True):
        np.testing.assert_array_equal(mine, original)
    assert list(combine(parts[:1] * 2).names) == ["0/0", "0/1", "1/0", "1/1"]
    with pytest.raises(UserError, match=r"different classes.*cat, dog; cat.*data\.classes"):
        combine([parts[0], source([], classes=("cat",))])


def test_the_files_of_a_source_stay_known():
    one, two = source([], []), source([], prefix="b")
    assert combine([one.take([1]), two]).files == ("container", "bcontainer")


def test_problems_that_sources_share_are_told_once():
    shared, own = Problems("skip"), Problems("skip")
    parts = [source([("wolf", WHOLE)], problems=each) for each in (shared, shared, own)]
    assert combine(parts[:2]).problems is shared
    assert combine(parts).problems.counts == {"SSD134": 3}


def test_the_fingerprint_follows_every_column():
    assert source([], prefix="\udcff").fingerprint != source([]).fingerprint
    plain = source([("cat", WHOLE)])
    assert plain.fingerprint == source([("cat", WHOLE)]).fingerprint
    others = [
        source([("dog", WHOLE)]),
        source([("cat", (0, 0, 1, 0.5))]),
        source([("cat", WHOLE)], []),
        source([("cat", WHOLE)], sizes=[(9, 9)]),
        source([("cat", WHOLE)], prefix="x"),
        source([("cat", WHOLE)], classes=("cat",)),
    ]
    assert len({plain.fingerprint, *(other.fingerprint for other in others)}) == 7


def test_an_index_beyond_the_end_is_no_image():
    with pytest.raises(IndexError, match="image 1 of 1"):
        source([])[1]


def test_images_are_taken_as_numpy_takes_rows():
    three = source([("cat", WHOLE)], [("dog", WHOLE)], [("cat", WHOLE), ("dog", WHOLE)])
    for images, names in (
        (np.array([False, True, True]), ("1", "2")),
        ([-1, 0], ("2", "0")),
        ([], ()),
    ):
        taken = three.take(images)
        assert tuple(taken.names) == names
        for index, name in enumerate(names):
            np.testing.assert_array_equal(taken[index].labels, three[int(name)].labels)
            assert taken[index].image == three[int(name)].image
