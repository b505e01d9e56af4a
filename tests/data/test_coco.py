"""COCO's object detection format."""

import json

import numpy as np
import pytest

from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.coco import open_coco, read_categories, read_objects
from ssd_jax.errors import DataError

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "cat", "supercategory": "animal"}]


def image(number, name, **more):
    return {"id": number, "file_name": name, "width": 100, "height": 50, **more}


def thing(number, box=(10, 5, 50, 20), category=1, **more):
    return {"image_id": number, "bbox": list(box), "category_id": category, **more}


def write(folder, images, things, categories=CATEGORIES, *, path="set.json", place="."):
    for each in images:
        if isinstance(each, dict) and isinstance(name := each.get("file_name"), str):
            (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / place / name).write_bytes(name.encode())
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    value = {"images": images, "annotations": things, "categories": categories, "info": {}}
    (folder / path).write_text(json.dumps(value), encoding="utf-8")
    return folder / path


def expect(code, *parts):
    return pytest.raises(DataError, match=f"(?s)^{code} .*" + ".*".join(parts))


def test_images_and_their_objects(tmp_path):
    images = [image(7, "a.jpg"), image(3, "x/b.png"), image(5, "c.jpg")]
    outline = {"segmentation": [[1.5] * 8], "area": 7.5}
    things = [thing(3, **outline), thing(7, (0, 0, 100, 50.4), 18), thing(3, category=18)]
    source = open_coco(write(tmp_path, images, things))
    assert (source.classes, source.names) == (("dog", "cat"), ("a", "b", "c"))
    assert source.object_counts.tolist() == [1, 2, 0]
    np.testing.assert_allclose(source[1].boxes, [(0.1, 0.1, 0.6, 0.5)] * 2, rtol=1e-6)
    np.testing.assert_array_equal(source[0].boxes, [(0, 0, 1, 1)])
    assert source[1].labels.tolist() == [1, 0]
    assert (source[1].image, source[1].size) == (b"x/b.png", (50, 100))
    assert source[1].name == str(tmp_path / "x/b.png")


def test_other_classes_are_found_by_name(tmp_path):
    path = write(tmp_path, [image(1, "a.jpg")], [thing(1), thing(1, category=18)])
    assert open_coco(path, classes=("cat", "dog"))[0].labels.tolist() == [0, 1]
    with expect("SSD134", r"annotations\[1\] of a.jpg, object 2", "'dog', expected one of cat"):
        open_coco(path, classes=("cat",))


def test_a_second_category_of_a_name_may_be_there_if_nothing_uses_it(tmp_path):
    """As Roboflow writes it: its supercategory is a category too."""
    categories = [{"id": 0, "name": "dog", "supercategory": "none"}]
    categories += [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    things = [thing(1, category=2), thing(1)]
    source = open_coco(write(tmp_path, [image(1, "a.jpg")], things, categories))
    assert source.classes == ("dog", "cat")
    assert source[0].labels.tolist() == [0, 1]
    unused = {"categories": categories, "annotations": []}
    assert read_categories(unused, "set.json") == {2: "dog", 1: "cat"}


def test_crowds_and_ignored_objects_are_difficult(tmp_path):
    things = [thing(1, iscrowd=1), thing(1, iscrowd=0, ignore=1), thing(1, iscrowd=0), thing(1)]
    source = open_coco(write(tmp_path, [image(1, "a.jpg")], things))
    assert source[0].difficult.tolist() == [True, True, False, False]


def test_null_is_as_good_as_no_value():
    """As programs write it that fill a table of fields."""
    things = [thing(1, iscrowd=None, ignore=None, area=None), thing(1)]
    problems = Problems()
    (unset, absent), _ = read_objects(things, {1: 0}, {1: "cat"}, "set.json", problems)
    assert unset == absent._replace(number=0)
    assert (absent.crowd, absent.difficult) == (False, False)
    assert absent.area == 1000


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.9, 0.8), (0.6, 0.5, 0.8, 0.9)])
def test_boxes_that_are_parts_of_the_side_are_no_pixels(tmp_path, box):
    """Corner and size, or the centre and the size as YOLO has them."""
    path = write(tmp_path, [image(1, "a.jpg")], [thing(1, box)] * 2)
    for policy in ("error", "skip"):
        with expect("SSD137", r"annotations\[0\] of a.jpg", "expected pixels. Multiply"):
            open_coco(path, problems=Problems(policy))
    one_of_them = write(tmp_path, [image(1, "a.jpg")], [thing(1, box), thing(1)])
    assert len(open_coco(one_of_them)[0].labels) == 2


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("set.json", "."),
        ("set.json", "images"),
        ("train.json", "train"),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/train.json", "images"),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path, path, place):
    path = write(tmp_path, [image(1, "a.jpg")], [thing(1)], path=path, place=place)
    assert open_coco(path)[0].image == b"a.jpg"


def test_a_folder_with_the_name_of_the_file_comes_before_others(tmp_path):
    """`convert` writes there, and another set may have an images/1.jpg too."""
    path = write(tmp_path, [image(1, "1.jpg")], [thing(1)], path="val.json", place="val")
    for other in ("images", "."):
        (tmp_path / other).mkdir(exist_ok=True)
        (tmp_path / other / "1.jpg").write_bytes(b"another set")
    assert open_coco(path)[0].image == b"1.jpg"


def test_one_missing_image_does_not_hide_the_folder_of_the_others(tmp_path):
    images = [image(1, "a.jpg"), image(2, "b.jpg"), image(3, "c.jpg")]
    path = write(tmp_path, images, [thing(1), thing(2)], place="images")
    (tmp_path / "images/a.jpg").unlink()
    source = open_coco(path, problems=Problems("skip"))
    assert (list(source.names), source.problems.counts) == (["b", "c"], {"SSD111": 1})


@pytest.mark.parametrize("broken", [{"bbox": []}, {"iscrowd": "?"}])
def test_an_image_that_loses_all_its_objects_is_no_image_without_objects(tmp_path, broken):
    images = [image(1, "a.jpg"), image(2, "b.jpg")]
    path = write(tmp_path, images, [thing(1) | broken, thing(2), thing(2) | broken])
    source = open_coco(path, problems=Problems("skip"))
    assert (list(source.names), source.object_counts.tolist()) == (["b"], [1])
    assert source.problems.counts == {"SSD122": 2, "SSD136": 1}


def test_the_objects_of_an_image_that_cannot_be_used_are_no_mistakes_of_their_own(tmp_path):
    images = [image(1, "a.jpg"), {**image(2, "b.jpg"), "file_name": ""}, image(3, "a.jpg")]
    path = write(tmp_path, [images[0]], [])
    value = {"images": images, "annotations": [thing(i) for i in (1, 2, 3)]}
    path.write_text(json.dumps(value | {"categories": CATEGORIES}))
    source = open_coco(path, problems=Problems("skip"))
    assert source.problems.counts == {"SSD122": 1, "SSD104": 1}


def test_a_folder_of_images_can_be_given(tmp_path):
    path = write(tmp_path, [image(1, "a.jpg")], [thing(1)], place="elsewhere")
    assert open_coco(path, tmp_path / "elsewhere")[0].image == b"a.jpg"
    with expect("SSD111", r"a\.jpg", r"images\[0\] names it"):
        open_coco(path)
    with expect("SSD101", "nowhere"):
        open_coco(path, tmp_path / "nowhere")


def test_paths_as_windows_writes_them_are_told(tmp_path):
    (tmp_path / "images/cam").mkdir(parents=True)
    (tmp_path / "images/cam/a.jpg").write_bytes(b"a.jpg")
    path = write(tmp_path, [image(1, "cam\\a.jpg")], [thing(1)], place="other")
    with expect("SSD111", "no such file", "folders are separated by /"):
        open_coco(path, tmp_path / "images")


@pytest.mark.parametrize(
    ("images", "things", "code", "part"),
    [
        ([image(2, "a.jpg")], [], "SSD104", r"images\[1\].*a\.jpg \(id 2\)"),
        ([image(1, "b.jpg")], [], "SSD104", r"b\.jpg \(id 1\)"),
        ([3], [], "SSD122", r"images\[1\].*'file_name' is None"),
        ([image("x", "b.jpg")], [], "SSD122", r"'id' is 'x'"),
        ([image(2, "b.jpg", width=0)], [thing(2)], "SSD122", "'width' is 0"),
        ([], [thing(9)], "SSD154", r"annotations\[1\].*'image_id' is 9, which no image has"),
        ([], [[]], "SSD122", "'bbox' is None, expected a list"),
        ([], [thing(1, (1, 2, 3))], "SSD122", r"'bbox' is \[1, 2, 3\], expected four"),
        ([], [thing(1, iscrowd="?")], "SSD122", "'iscrowd' is '\\?'"),
        ([], [thing(1, (1, 2, "x", 4))], "SSD131", "annotations.*object 2.*width 'x'"),
        ([], [thing(1, (1, 2, 1e308, 4))], "SSD131", "width 1e"),
        ([], [thing(1, (1, 2, 0, 4))], "SSD133", "width 0, height 4"),
        ([], [thing(1, (60, 2, 50, 4))], "SSD132", "10 pixels"),
        ([], [thing(1, (100, 10, 1, 20))], "SSD133", "no area in the image"),
        ([], [thing(1, (-1, 10, 1, 20))], "SSD133", "no area in the image"),
        ([], [thing(1, category=2)], "SSD134", "'category_id 2', expected one of dog, cat"),
        ([], [thing(1, category=None)], "SSD134", "category_id None"),
    ],
)
def test_what_cannot_be_used_is_named_or_left_out(tmp_path, images, things, code, part):
    path = write(tmp_path, [image(1, "a.jpg"), *images], [thing(1), *things])
    with expect(code, r"set\.json", part):
        open_coco(path)
    source = open_coco(path, problems=Problems("skip"))
    assert (source.names[0], source.object_counts.tolist()[0]) == ("a", 1)
    assert source.problems.counts == {code: 1}


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("[]", "SSD122", "'categories' is None"),
        ('{"categories": [], "images": 3}', "SSD122", "'images' is 3"),
        ('{"categories": [{"id": 1}]}', "SSD122", r"categories\[0\]: 'name' is None"),
        ('{"categories": [{"id": "x", "name": "a"}]}', "SSD152", "expected a unique id and a name"),
        ('{"categories": [{"id":1,"name":"a"},{"id":1,"name":"b"}]}', "SSD152", "unique id"),
        (
            '{"categories": [{"id":1,"name":"a"},{"id":2,"name":"a"},{"id":3,"name":"a"}],'
            '"annotations": [{"category_id": 1}, {"category_id": 3}]}',
            "SSD152",
            "the ids 1, 3 are all called 'a'",
        ),
        ('{"categories": [], "images": [], "annotations": []}', "SSD103", "0 images"),
        ('{"images": [], "images": []}', "SSD122", "'images' appears twice"),
        ("not JSON", "SSD122", "cannot be read"),
    ],
)
def test_a_file_that_is_none_of_coco(tmp_path, text, code, part):
    (tmp_path / "set.json").write_text(text)
    with expect(code, r"set\.json", part) as error:
        open_coco(tmp_path / "set.json", problems=Problems(advice="Leave it out"))
    assert "Leave it out" not in str(error.value)  # for that would not help


def test_a_missing_file_is_told(tmp_path):
    with expect("SSD122", r"no\.json: the file cannot be read"):
        open_coco(tmp_path / "no.json")
