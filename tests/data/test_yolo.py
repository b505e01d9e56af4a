"""YOLO's format."""

import json

import numpy as np
import pytest

from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.json_records import MAX_RECORD_BYTES
from ssd_jax.data.sources.yolo import find_yaml, open_yolo
from ssd_jax.errors import DataError, UserError

BOX = "0.5 0.5 0.5 0.25"
CORNERS = (0.25, 0.375, 0.75, 0.625)


def write(folder, files, **described):
    """A data set of files by path; an image `x.jpg` holds its path. Lists are lines."""
    described = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]} | described
    for path, content in {"data.yaml": json.dumps(described), **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join(content) if isinstance(content, list) else content or path
        (folder / path).write_text(text, encoding="utf-8")
    return folder / "data.yaml"


def pair(name, *lines, place="images/train"):
    """An image and its text file."""
    labels = "/labels".join(place.rsplit("images", 1)).replace("//", "/").lstrip("/")
    return {f"{place}/{name}.jpg": None, f"{labels}/{name}.txt": list(lines)}


def expect(code, *parts):
    return pytest.raises(DataError, match=f"(?s)^{code} .*" + ".*".join(parts))


def test_images_and_their_boxes(tmp_path):
    path = write(
        tmp_path,
        {
            **pair("b", f"1 {BOX}", "0 0.25 0.5 0.5 1", ""),
            **pair("a"),
            "images/train/c.PNG": None,
            **pair("v", f"0 {BOX}", place="images/val"),
        },
    )
    source = open_yolo(path, ("train",))
    assert (source.classes, source.names) == (("cat", "dog"), ("a", "b", "c"))
    assert source.object_counts.tolist() == [0, 2, 0]
    assert (source[1].image, source[1].size) == (b"images/train/b.jpg", None)
    assert source[1].labels.tolist() == [1, 0]
    np.testing.assert_allclose(source[1].boxes, [CORNERS, (0, 0, 0.5, 1)])
    assert source[1].name == str(tmp_path / "images/train/b.jpg")
    assert not source[1].difficult.any()
    assert open_yolo(path, ("train", "val")).names == ("a", "b", "c", "v")


@pytest.mark.parametrize("place", ["", "data.yaml"])
def test_the_folder_or_the_file_is_given(tmp_path, place):
    write(tmp_path, pair("a", f"1 {BOX}"))
    assert open_data(tmp_path / place, split="train").names == ("a",)
    assert open_data(f"{tmp_path / place}@train").names == ("a",)


def test_other_classes_are_found_by_name(tmp_path):
    path = write(tmp_path, pair("a", f"0 {BOX}", f"1 {BOX}"))
    assert open_yolo(path, ("train",), classes=("dog", "cat"))[0].labels.tolist() == [1, 0]
    with expect("SSD134", r"labels/train/a.txt, line 1: unknown class 'cat'"):
        open_yolo(path, ("train",), classes=("dog",))


@pytest.mark.parametrize(
    ("described", "classes"),
    [
        ({"names": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
        ({"names": {"1": "dog", "5": "cat"}}, ("dog", "cat")),
        ({"names": None, "nc": 2}, ("0", "1")),
        ({"nc": 2}, ("cat", "dog")),
    ],
)
def test_names_are_a_list_or_a_map_or_counted(tmp_path, described, classes):
    path = write(tmp_path, pair("a", f"1 {BOX}"), **described)
    source = open_yolo(path, ("train",))
    assert source.classes == classes
    assert source.classes[source[0].labels[0]] == {"0": "1"}.get(classes[0], "dog")


def test_words_of_yaml_may_be_names(tmp_path):
    """In YAML 1.1 `no` is a logical value, and `1e3` a number."""
    path = write(tmp_path, pair("a", f"0 {BOX}"))
    path.write_text("train: images/train\nnames:\n- no\n- 1e3\n- null\n- Größe\n", encoding="utf-8")
    assert open_yolo(path, ("train",)).classes == ("no", "1e3", "null", "Größe")


@pytest.mark.parametrize(
    ("line", "corners"),
    [
        ("1 0.1 0.9 0.5 0.2 0.3 0.4", (0.1, 0.2, 0.5, 0.9)),
        ("1 0.25 0.375 0.75 0.375 0.75 0.625 0.25 0.625", CORNERS),
        (f"1.0\t{BOX}  ", CORNERS),
        ("1 0.5 0.5 1.000002 1.000002", (0, 0, 1, 1)),
    ],
)
def test_a_line_is_a_box_or_an_outline(tmp_path, line, corners):
    source = open_yolo(write(tmp_path, pair("a", line)), ("train",))
    np.testing.assert_allclose(source[0].boxes, [corners], rtol=1e-6)


def test_keypoints_are_left_out(tmp_path):
    files = pair("a", f"0 {BOX} 0.1 0.1 2 0.9 0.9 2")
    np.testing.assert_allclose(
        open_yolo(write(tmp_path, files, kpt_shape=[2, 3]), ("train",))[0].boxes, [CORNERS]
    )


@pytest.mark.parametrize(
    ("line", "code", "problem"),
    [
        ("0 0.5 0.5 0.5", "SSD122", "3 numbers follow the class id, expected x, y, width and"),
        (f"0 {BOX} 0.9", "SSD122", "5 numbers follow"),
        (f"cat {BOX}", "SSD122", "the class id is 'cat', expected a number"),
        (f"0.5 {BOX}", "SSD122", "the class id is '0.5'"),
        (f"2 {BOX}", "SSD134", "unknown class 'class id 2', expected one of cat, dog"),
        (f"-1 {BOX}", "SSD134", "unknown class 'class id -1'"),
        ("0 0.1 0.1 0.5 0.5 0.9", "SSD122", "5 numbers follow"),
        ("1e300 0.5 0.5 0.5 0.5", "SSD122", "the class id is '1e300'"),
        ("0 0,5 0,5 0,2 0,2", "SSD131", "'0 0,5 0,5 0,2 0,2' is unreadable, expected numbers such"),
        ("0 0.5 nan 0.5 0.5", "SSD131", "is unreadable"),
        ("0 0.5 0.5 0.5 0", "SSD133", "no area"),
        ("0 150 75 100 50", "SSD132", "199 of the image side outside"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path, line, code, problem):
    path = write(tmp_path, {**pair("a", f"1 {BOX}", line), **pair("b", line)})
    with expect(code, r"labels/train/a.txt, line 2: ", problem):
        open_yolo(path, ("train",))
    source = open_yolo(path, ("train",), problems=Problems("skip"))
    # Without its only box, b would train an object as background; not so one of an unknown class.
    assert list(source.names) == (["a", "b"] if code == "SSD134" else ["a"])
    assert source[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    ("described", "files"),
    [
        ({"path": "."}, {}),
        ({"path": "/nowhere/set"}, {}),
        ({"path": "../datasets/set"}, {}),
        ({"train": "../images/train"}, {}),  # as in Roboflow's exports
        ({"train": "set/images/train"}, {}),  # as in those of its program
        ({"train": ["images/train"]}, {}),
        ({"train": "images/train/a.jpg"}, {}),
        ({"path": "labels"}, {}),  # which exists, but the images are beside the file
        ({"path": "~/set"}, {}),
        ({"path": "~nobody/set"}, {}),
        ({"path": "x" * 300}, {}),
        ({"train": "images"}, {}),
        ({"train": "lists/train.txt"}, {"lists/train.txt": ["../images/train/a.jpg", ""]}),
        ({"train": "lists/train.txt"}, {"lists/train.txt": ["images/train/a.jpg"]}),
        ({"train": "train.txt"}, {"train.txt": ["\ufeff./images/train/a.jpg"]}),
        ({"train": "train.txt"}, {"train.txt": ["data/images/train/a.jpg"]}),  # as CVAT does
    ],
)
def test_where_the_images_are(tmp_path, monkeypatch, described, files):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "set", {**pair("a", f"1 {BOX}"), **files}, **described)
    source = open_yolo(path, ("train",))
    assert (source.names, source.object_counts.tolist()) == (("a",), [1])


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("images/train/a.jpg", "images/train/a.txt"),
        ("train/a.b.jpg", "train/a.b.txt"),
    ],
)
def test_where_the_text_files_are(tmp_path, image, label):
    path = write(tmp_path, {image: None, label: f"1 {BOX}"}, train=image.partition("/")[0])
    assert open_yolo(path, ("train",)).object_counts.tolist() == [1]


def test_the_data_set_may_be_moved(tmp_path):
    files = {**pair("a", f"1 {BOX}", place="x/images"), **pair("a", place="y/images")}
    path = write(tmp_path / "one", files, train=["x/images", "y/images"])
    before = open_yolo(path, ("train",))
    path = (tmp_path / "one").rename(tmp_path / "two") / "data.yaml"
    after = open_yolo(path, ("train",))
    assert before.names == after.names == ("x/images/a", "y/images/a")
    assert before.fingerprint == after.fingerprint


def test_an_image_is_there_once(tmp_path):
    path = write(tmp_path, pair("a", f"1 {BOX}"), train=["images", "images/train"])
    with expect("SSD104", "images/train: the image 'images/train/a.jpg' is there already"):
        open_yolo(path, ("train",))
    assert len(open_yolo(path, ("train",), problems=Problems("skip"))) == 1


def test_a_listed_image_may_be_missing(tmp_path):
    lines = [
        "images/train/a.jpg",
        "images/train/b.jpg",
        "x" * 300,
        "labels",
        "images\\train\\a.jpg",
    ]
    path = write(tmp_path, {**pair("a", f"1 {BOX}"), "t.txt": lines}, train="t.txt")
    with expect("SSD111", "images/train/b.jpg", "t.txt, line 2 names it"):
        open_yolo(path, ("train",))
    problems = Problems("skip")
    assert open_yolo(path, ("train",), problems=problems).names == ("a",)
    assert "no such file (folders are separated by /)" in problems.found[-1].problem


@pytest.mark.parametrize(
    ("described", "code", "problem"),
    [
        ({"names": ["cat", "cat"]}, "SSD152", "two classes are named 'cat'"),
        ({"nc": 3}, "SSD152", "'nc' is 3, but there are 2 names"),
        ({"names": "cat"}, "SSD122", "'names' is not a list"),
        ({"names": []}, "SSD122", "'names' is not a list"),
        ({"names": [["cat"]]}, "SSD122", "'names' is not a list"),
        ({"names": {"cat": 0}}, "SSD122", "'names' is not a list"),
        ({"names": {"-1": "cat"}}, "SSD122", "'names' is not a list"),
        ({"names": {"0": "cat", "00": "dog"}}, "SSD122", "'names' is not a list"),
        ({"names": ["a\nb"]}, "SSD122", "'names' is not a list"),
        ({"path": "gone", "train": "no"}, "SSD101", "names it, and its path, 'gone', which does"),
        ({"train": "images\\train"}, "SSD101", r"no such folder or file \(folders are separated"),
        ({"train": "x" * 300}, "SSD101", "no such folder or file"),
        ({"train": "images/none"}, "SSD101", "images/none: there is no such folder or file"),
        ({"train": [["x"]]}, "SSD122", "a split is no path"),
        (
            {"train": "images/val"},
            "SSD121",
            "no image has a text file of .*labels/val/v.txt",
        ),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, described, code, problem):
    path = write(tmp_path, {**pair("a", f"1 {BOX}"), "images/val/v.jpg": None}, **described)
    with expect(code, problem):
        open_yolo(path, ("train",))


@pytest.mark.parametrize("text", ["", "- cat", "a: [", "a: \x00", "[" * 5000])
def test_a_file_that_is_no_such_yaml(tmp_path, text):
    path = write(tmp_path, pair("a", f"1 {BOX}"))
    path.write_text(text)
    with expect("SSD122", "data.yaml"):
        open_yolo(path, ("train",))


def test_splits_are_told(tmp_path):
    path = write(tmp_path, pair("a", f"1 {BOX}"), nc=2, download="https://x", test=None)
    with pytest.raises(UserError, match=r"no split was given .* Name one or more of val, train\."):
        open_yolo(path, ())
    with expect("SSD102", "there is no split 'test'", "val, train"):
        open_yolo(path, ("test",))


def test_images_that_cannot_be_decoded_are_not_overlooked(tmp_path):
    path = write(tmp_path, {**pair("a", f"1 {BOX}"), "images/train/b.BMP": None})
    assert open_yolo(path, ("train",)).names == ("a", "b")


def test_a_text_file_that_cannot_be_read_is_no_empty_one(tmp_path):
    path = write(tmp_path, {**pair("a", f"1 {BOX}"), **pair("b", " " * (MAX_RECORD_BYTES + 1))})
    with expect("SSD151", "labels/train/b.txt"):
        open_yolo(path, ("train",))
    assert list(open_yolo(path, ("train",), problems=Problems("skip")).names) == ["a"]


def test_bytes_that_are_no_text_are_a_line_that_cannot_be_read(tmp_path):
    path = write(tmp_path, pair("a", f"1 {BOX}"))
    (tmp_path / "labels/train/a.txt").write_bytes(b"1 0.5 0.5 \xff 0.25")
    with expect("SSD131", "line 1"):
        open_yolo(path, ("train",))


def test_the_text_files_may_lie_where_a_link_leads(tmp_path):
    write(tmp_path / "far", pair("a", f"1 {BOX}"))
    (tmp_path / "near/images").mkdir(parents=True)
    (tmp_path / "near/images/train").symlink_to(tmp_path / "far/images/train")
    path = write(tmp_path / "near", {})
    assert open_yolo(path, ("train",)).object_counts.tolist() == [1]


def test_the_own_folder_comes_before_the_one_above(tmp_path):
    write(tmp_path, pair("other", f"1 {BOX}", place="train/images"))
    files = pair("a", f"1 {BOX}", place="train/images")
    path = write(tmp_path / "v2", files, train="../train/images")
    assert open_yolo(path, ("train",)).names == ("a",)


def test_without_names_an_id_is_an_index_into_the_classes(tmp_path):
    path = write(tmp_path, pair("a", f"1 {BOX}"), names=None, nc=2)
    source = open_yolo(path, ("train",), classes=("elk", "owl"))
    assert (source.classes, source[0].labels.tolist()) == (("elk", "owl"), [1])


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["data.yaml", "coco8.yaml"], "data.yaml"),
        (["dataset.yml", "coco8.yaml"], "dataset.yml"),
        (["coco8.yaml"], "coco8.yaml"),
        (["a.yaml", "b.yaml"], None),
        (["._data.yaml"], None),
        ([], None),
    ],
)
def test_which_file_describes_a_folder(tmp_path, files, found):
    for name in files:
        (tmp_path / name).write_text("names: [cat]")
    (tmp_path / "dataset.yaml").write_text("description: of something else")
    assert find_yaml(tmp_path) == (found and tmp_path / found)
    assert find_yaml(tmp_path / "none") is None
