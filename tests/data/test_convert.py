"""Any format into any other: nothing is lost on the way, nothing half-written looks whole."""

import functools
import json
import pathlib
import shlex
import sys
import tempfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.data import writers
from ssd_jax.data.convert import FORMATS, convert, run_convert
from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems, source_of_objects
from ssd_jax.errors import DataError, UserError
from ssd_jax.locks import held

# Where each format is written, and the split it is read back with.
PLACES = {
    "voc": ("set", ("train",)),
    "json": ("set", ("train",)),
    "manifest": ("set.manifest", ()),
    "coco": ("set.json", ()),
    "recordio": ("set.rec", ()),
    "tfds": ("set", ("train",)),
}
# RecordIO keeps the sizes that are known, TFDS has no place for them, the others look them up.
WITH_SIZES = ("voc", "json", "manifest", "coco")
CLASSES = ("zebra", "cat & <dog>", "ähre")


@functools.cache
def picture(height, width, suffix=".jpg", exif=b""):
    data = cv2.imencode(suffix, np.zeros((height, width, 3), np.uint8))[1].tobytes()
    return data[:2] + exif + data[2:]


def source_of(*images, sized=True, classes=CLASSES, problems=None, names=None):
    """A source of images given as (bytes, (height, width), [(class id, pixel box, difficult)])."""
    objects = [(thing, size) for _, size, things in images for thing in things]
    boxes = [np.array(box) / (size[::-1] * 2) for (_, box, _), size in objects]
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    sizes = np.array([size for _, size, _ in images], np.int32).reshape(-1, 2)
    return source_of_objects(
        names=names or tuple(str(index) for index in range(len(images))),
        sizes=sizes if sized else np.zeros_like(sizes),
        object_counts=np.array([len(things) for *_, things in images], np.int64),
        written=boxes,
        boxes=boxes,
        labels=np.array([thing[0] for thing, _ in objects], np.int64),
        difficult=np.array([thing[2] for thing, _ in objects], bool),
        classes=classes,
        read_image=lambda index: images[index][0],
        locate=lambda index: f"image {index}",
        problems=problems or Problems(),
        locate_object=lambda image, number: f"image {image}, object {number}",
        label_text=str,
    )


def one(box=(10, 5, 60, 25), **words):
    return source_of((picture(50, 100), (50, 100), [(0, box, False)]), **words)


def one_and_cut():
    """A picture with an object, and one of which only the first bytes are there."""
    good = picture(50, 100)
    return (good, (50, 100), [(0, (10, 5, 60, 25), False)]), (good[:2], (50, 100), [])


def missing(index):
    raise DataError("SSD111", f"image {index}", "it is gone", "Put it back")


def written(source, folder, format, **words):
    """The source as it comes back from a format."""
    place, split = PLACES[format]
    target = convert(source, folder / place, format=format, **words)
    assert target.split == (split if format in ("voc", "tfds") else ())
    return open_data(target.location if format == "tfds" else folder / place, split=split)


def content(source):
    """What must survive, by the bytes of the images."""
    examples = [source[index] for index in range(len(source))]
    return source.classes, {
        e.image: (e.boxes.tolist(), e.labels.tolist(), e.difficult.tolist()) for e in examples
    }


@st.composite
def drawn_images(draw):
    """Images of several sizes, boxes with whole pixels and quarters."""
    images = []
    for index in range(draw(st.integers(1, 4))):
        height, width = draw(st.sampled_from([(50, 100), (33, 47)]))
        things = []
        for _ in range(draw(st.integers(0, 3))):
            left, top = draw(st.integers(0, 20)), draw(st.integers(0, 80)) / 4
            right, bottom = draw(st.integers(25, 47)), draw(st.integers(25 * 4, 33 * 4)) / 4
            flag = draw(st.booleans())
            things.append((draw(st.integers(0, 2)), (left, top, right, bottom), flag))
        data = picture(height, width, draw(st.sampled_from([".jpg", ".png"])))
        images.append((data + bytes([index]), (height, width), things))
    return images


@settings(max_examples=12, deadline=None)
@given(
    drawn_images(),
    st.booleans(),
    st.lists(st.sampled_from(sorted(FORMATS)), min_size=1, max_size=3),
)
def test_nothing_is_lost_on_any_way(images, sized, path):
    source = source_of(*images, sized=sized)
    with tempfile.TemporaryDirectory() as folder:
        last = source
        for number, format in enumerate(path):
            (step := pathlib.Path(folder, str(number))).mkdir()
            last = written(last, step, format)
            assert content(last) == content(source)
            assert sorted(last.names) == sorted(source.names)
            if format in WITH_SIZES or (format == "recordio" and sized and "tfds" not in path):
                assert (last.annotations.sizes > 0).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_set_without_any_object_keeps_its_classes(tmp_path, format):
    empty = source_of((picture(50, 100), (50, 100), []))
    assert content(written(empty, tmp_path, format)) == content(empty)


@pytest.mark.parametrize("format", ["voc", "json", "manifest", "coco"])
def test_names_become_files(tmp_path, format):
    names = ("VOC2007/ü 1", "VOC2007:ü 1", "../../evil\n", "x" * 300)
    images = [
        (picture(50, 100) + bytes([n]), (50, 100), [(0, (1, 1, 9, 9), True)]) for n in range(4)
    ]
    back = written(source_of(*images, names=names), tmp_path, format)
    assert sorted(back.names) == [
        "VOC2007_ü 1", "VOC2007_ü 1_2", "_.._evil_", "x" * 240
    ]  # fmt: skip
    assert {path.name for path in tmp_path.parent.iterdir() if "evil" in path.name} == set()


def test_sizes_are_read_where_the_source_has_none(tmp_path):
    turned = (
        b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    )
    shown = (100, 50)  # the file has 50 x 100
    source = source_of(
        (picture(50, 100, exif=turned), shown, [(0, (5, 10, 25, 60), True)]), sized=False
    )
    back = written(source, tmp_path, "coco")
    assert back.annotations.sizes.tolist() == [[100, 50]]
    assert content(back) == content(source)


def test_what_others_read(tmp_path):
    source = one()
    for format in ("voc", "json", "manifest", "coco"):
        convert(source, tmp_path / format / PLACES[format][0], format=format)
    xml = (tmp_path / "voc/set/Annotations/0.xml").read_text()
    assert "<xmin>11</xmin><ymin>6</ymin><xmax>60</xmax><ymax>25</ymax>" in xml
    assert "<width>100</width><height>50</height><depth>3</depth>" in xml
    assert (tmp_path / "voc/set/ImageSets/Main/train.txt").read_text() == "0\n"
    record = json.loads((tmp_path / "json/set/train_annotation/0.json").read_text())
    box = {"class_id": 0, "left": 10, "top": 5, "width": 50, "height": 20}
    assert (record["file"], record["annotations"]) == ("0.jpg", [box])
    assert record["categories"][1] == {"class_id": 1, "name": CLASSES[1]}
    line = json.loads((tmp_path / "manifest/set.manifest").read_text())
    assert line["source-ref"] == "set/0.jpg"
    assert line["objects"]["annotations"] == [box]
    assert line["objects-metadata"]["class-map"]["0"] == "zebra"
    coco = json.loads((tmp_path / "coco/set.json").read_text())
    assert coco["annotations"] == [
        {
            "id": 1,
            "image_id": 0,
            "category_id": 1,
            "bbox": [10, 5, 50, 20],
            "area": 1000,
            "iscrowd": 0,
        }
    ]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("10", "000002"), [10, 2]),
        (("10", "x"), [1, 2]),
        (("2", "02"), [1, 2]),
        (("1", "9" * 20), [1, 2]),
    ],
)
def test_images_of_coco_have_the_numbers_that_they_are_called(names, ids, tmp_path):
    images = [(picture(50, 100), (50, 100), [(0, (1, 1, 9, 9), False)])] * 2
    convert(source_of(*images, names=names), tmp_path / "set.json")
    coco = json.loads((tmp_path / "set.json").read_text())
    assert [(each["id"], each["file_name"]) for each in coco["images"]] == [
        (number, f"{name}.jpg") for number, name in zip(ids, names, strict=True)
    ]
    assert [each["image_id"] for each in coco["annotations"]] == ids


def test_several_splits_and_folders(tmp_path):
    for name in ("train", "validation"):
        convert(one(), tmp_path / "set", format="json", name=name)
    assert len(open_data(tmp_path / "set", split=("train", "validation"))) == 2
    convert(one(), tmp_path / "set", format="json", name="../a[:9%]")
    assert len(open_data(tmp_path / "set/_a[_9%]")) == 1
    with pytest.raises(UserError, match=r"set/train already exists"):
        convert(one(), tmp_path / "set", format="json")


def test_what_killed_conversions_left_is_removed(tmp_path):
    dead, alive = (tmp_path / f"set/.unfinished-{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        (folder / "JPEGImages").mkdir(parents=True)
    with held(alive):
        convert(one(), tmp_path / "set")
    assert not dead.exists()
    assert (alive / "JPEGImages").is_dir()


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_half_written_looks_whole(tmp_path, format):
    good = picture(50, 100)
    images = [(good + bytes([n]), (50, 100), []) for n in range(20)]
    source = source_of(*images)

    def read_image(index):
        if index == 15:
            raise KeyboardInterrupt
        return images[index][0]

    source.read_image = read_image
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / PLACES[format][0], format=format)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("format", FORMATS)
def test_what_cannot_be_read_is_refused_or_left_out(tmp_path, format):
    def source(policy):
        images = [
            (picture(50, 100) + bytes([n]), (50, 100), [(n, (1, 1, 9, 9), 0)]) for n in (0, 1)
        ]
        result = source_of(*images, problems=Problems(policy))

        def read_image(index):
            return missing(index) if index == 0 else images[index][0]

        result.read_image = read_image
        return result

    with pytest.raises(DataError, match="SSD111 image 0"):
        written(source("error"), tmp_path, format)
    assert written(source("skip"), tmp_path, format).annotations.labels.tolist() == [1]


def test_images_of_other_kinds_are_refused(tmp_path):
    gif = source_of((b"GIF89a", (50, 100), []))
    with pytest.raises(DataError, match="SSD112 image 0: 6 bytes that start with b'GIF8'"):
        convert(gif, tmp_path / "a.json")
    cut = source_of((picture(50, 100)[:9], (50, 100), []), sized=False)
    with pytest.raises(DataError, match="SSD112"):
        convert(cut, tmp_path / "a.json")


@pytest.mark.parametrize("format", ["voc", "json", "manifest", "coco"])
def test_an_image_whose_size_cannot_be_read_is_a_problem_like_any_other(tmp_path, format):
    good, cut = ((picture(50, 100)[:length], (50, 100), []) for length in (None, 9))
    source = source_of(good, cut, sized=False, problems=Problems("skip"))
    assert len(written(source, tmp_path, format)) == 1
    assert source.problems.counts == {"SSD112": 1}


@pytest.mark.parametrize("format", ["json", "recordio"])
def test_a_set_without_images_is_not_written(tmp_path, format):
    source = one(problems=Problems("skip"))
    source.read_image = missing
    with pytest.raises(UserError, match="nothing to write: every image was left out, 1 SSD111"):
        written(source, tmp_path, format)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_boxes_too_thin_for_a_format_are_told(tmp_path):
    thin = one((10, 5, 10.8, 25))
    assert content(written(thin, tmp_path, "coco"))[0] == CLASSES
    with pytest.raises(DataError, match=r"SSD133 image 0, object 1: .*11.0, 6.0, 10.8.*too thin"):
        written(thin, tmp_path, "voc")


def test_an_image_is_not_written_without_its_objects(tmp_path):
    objects = [(0, (10, 5, 10.8, 25), False)]
    thin, good = (picture(50, 100), (50, 100), objects), (picture(50, 100), (50, 100), [])
    source = source_of(thin, good, problems=Problems("skip"))
    assert written(source, tmp_path, "voc").object_counts.tolist() == [0]
    assert source.problems.counts == {"SSD133": 1, "SSD136": 1}


def test_the_verb(tmp_path):
    convert(one(), tmp_path / "voc", name="val")
    text = run_convert(str(tmp_path / "voc"), tmp_path / "set", split=("val",), format="json")
    assert text.startswith("1 image, 1 object (zebra 1")
    assert (tmp_path / "set/val_annotation/0.json").exists()
    run_convert(str(tmp_path / "set"), tmp_path / "set.rec", split=("val",))
    source = open_data(tmp_path / "set.rec")
    assert (source.classes, list(source.names)) == (CLASSES, ["0"])


def test_the_verb_counts_what_it_wrote(tmp_path):
    convert(source_of(*one_and_cut()), tmp_path / "a.rec")
    with pytest.raises(DataError, match="--skip-problems leaves out"):
        run_convert(str(tmp_path / "a.rec"), tmp_path / "a.json")
    text = run_convert(str(tmp_path / "a.rec"), tmp_path / "a.json", problems="skip")
    assert text.startswith("1 image, 1 object (zebra 1")
    assert "left out: 1 SSD112\n" in text


@pytest.mark.parametrize("format", FORMATS)
def test_the_verb_says_how_to_read_it(tmp_path, format):
    convert(one(), tmp_path / "in.rec")
    destination = tmp_path / "a b" / PLACES[format][0]
    text = run_convert(str(tmp_path / "in.rec"), destination, format=format, name="a:b")
    location, *split = shlex.split(text.splitlines()[-1].removeprefix("read it with: "))
    assert split == (["--split", "a_b"] if format in ("voc", "tfds") else [])
    assert len(open_data(location, split=split[1:])) == 1


@pytest.mark.parametrize(
    ("destination", "words", "message"),
    [
        ("there", {}, "there/ImageSets already exists: move it away"),
        ("file", {}, "file is a file: expected a folder"),
        ("s3://bucket/set", {}, "is remote: give a local path"),
        (
            "x",
            {"format": "yolo"},
            "'yolo', expected one of voc, json, .* tfds",
        ),
        ("x.txt", {"format": "coco"}, r"x.txt ends in '.txt': expected .json for coco"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(
    destination, words, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/ImageSets").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        run_convert("nowhere", destination, **words)


def test_class_names_that_some_format_cannot_hold(tmp_path):
    for name in ("a\nb", " a", ""):
        with pytest.raises(UserError, match="cannot be written, expected printable"):
            convert(one(classes=(name, "b", "c")), tmp_path / "a.json")


def test_progress_is_shown_on_a_terminal_only(tmp_path, capsys, monkeypatch):
    convert(one(), tmp_path / "a.json")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    convert(one(), tmp_path / "b.json")
    assert "1/1" in capsys.readouterr().err


def test_names_of_files_differ_without_case():
    assert writers.file_stems(["a", "A", "a_2"]) == ["a", "A_2", "a_2_2"]
