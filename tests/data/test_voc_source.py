"""VOC folders: what is read, what is refused, and what the refusal says."""

import pathlib
import tarfile

import cv2
import numpy as np
import pytest

from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.errors import DataError, UserError

JPEG = cv2.imencode(".jpg", np.zeros((50, 100, 3), np.uint8))[1].tobytes()


def thing(name="dog", corners=(1, 1, 100, 50), extra="<difficult>0</difficult>"):
    tags = ("ymax", "xmax", "ymin", "xmin")  # any order
    values = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    box = "".join(f"<{tag}>{values[tag]}</{tag}>" for tag in tags)
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def annotation(*things, size=(50, 100)):
    height, width = size
    return (
        f"<annotation><filename>lies.jpg</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{''.join(things)}</annotation>"
    )


def write_voc(folder, annotations, *, image_set="train", suffix=".jpg"):
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image_id, text in annotations.items():
        (folder / "Annotations" / f"{image_id}.xml").write_text(text, encoding="utf-8")
        (folder / "JPEGImages" / f"{image_id}{suffix}").write_bytes(JPEG)
    ids = "".join(f"{image_id}\n" for image_id in annotations)
    (folder / "ImageSets" / "Main" / f"{image_set}.txt").write_text(ids, encoding="utf-8")
    return folder


def one(folder, *things, **options):
    """The source of one image that holds these things."""
    return open_voc(write_voc(folder, {"a": annotation(*things)}), ("train",), **options)


def test_devkit_pixels_are_counted_from_one_and_inclusive(tmp_path):
    example = one(tmp_path, thing(corners=(1, 1, 100, 50)), thing(corners=(51, 11, 75, 30)))[0]
    np.testing.assert_allclose(example.boxes, [(0, 0, 1, 1), (0.5, 0.2, 0.75, 0.6)], rtol=1e-6)
    assert example.boxes.dtype == np.float32
    assert example.name.endswith("JPEGImages/a.jpg")
    assert (example.size, example.image) == ((50, 100), JPEG)


def test_one_pixel_outside_is_clamped(tmp_path):
    example = one(tmp_path, thing(corners=(0, 0.5, 101, 50.9)))[0]
    np.testing.assert_array_equal(example.boxes, [(0, 0, 1, 1)])


def test_classes_difficult_and_parts(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    source = one(
        tmp_path,
        thing("dog", extra=part),
        thing("cat", corners=(1.5, 2.25, 3, 4), extra="<difficult>1</difficult>"),
    )
    assert source.classes == ("cat", "dog")
    assert source[0].labels.tolist() == [1, 0]
    assert source[0].difficult.tolist() == [False, True]


def test_given_classes_keep_their_order(tmp_path):
    source = one(tmp_path, thing("dog"), classes=("dog", "cat"))
    assert (source.classes, source[0].labels.tolist()) == (("dog", "cat"), [0])


def test_images_without_objects_are_kept(tmp_path):
    write_voc(tmp_path, {"a": annotation(), "b": annotation(thing())})
    source = open_voc(tmp_path, ("train",))
    assert source.names == ("a", "b")
    assert source.object_counts.tolist() == [0, 1]
    assert source[0].boxes.shape == (0, 4)
    assert source.describe() == "2 images, 1 object (dog 1), 1 image without objects"


def test_devkit_of_several_years(tmp_path):
    write_voc(tmp_path / "VOC2007", {"a": annotation(thing())}, image_set="trainval")
    write_voc(tmp_path / "VOC2012", {"ü 1": annotation()}, image_set="trainval", suffix=".PNG")
    source = open_voc(tmp_path, ("VOC2007/trainval", "VOC2012/trainval"))
    assert source.names == ("VOC2007/a", "VOC2012/ü 1")
    assert source[1].image == JPEG


def test_the_id_alone_finds_the_image(tmp_path):
    write_voc(tmp_path, {"a": annotation(thing())})
    (tmp_path / "JPEGImages/a.png").write_bytes(b"the less usual suffix")
    list_of_ids = tmp_path / "ImageSets/Main/train.txt"
    list_of_ids.write_text("\ufeff" + list_of_ids.read_text(), encoding="utf-8")
    assert open_voc(tmp_path, "train")[0].image == JPEG


def test_ids_may_name_a_folder(tmp_path):
    """As CVAT and Datumaro write them."""
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name / "cam1").mkdir(parents=True)
    write_voc(tmp_path, {"cam1/b": annotation(thing())})
    assert open_voc(tmp_path, "train")[0].image == JPEG
    (tmp_path / "JPEGImages/cam1/b.jpg").rename(tmp_path / "JPEGImages/cam1/b.JPG")
    assert open_voc(tmp_path, "train")[0].image == JPEG


def test_an_annotation_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    write_voc(tmp_path, {"a": annotation(thing())})

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"SSD122 .*a\.xml: .*cannot be read \(Permission denied\)"):
        open_voc(tmp_path, "train")


def test_dropped_boxes_are_counted_by_code(tmp_path):
    bad = [(9, 9, 9, 20), (20, 9, 10, 20), (-5, 1, 9, 9), ("nan", 1, 9, 9), ("", 1, 9, 9)]
    source = one(tmp_path, thing(), *(thing(corners=box) for box in bad), problems=Problems("skip"))
    assert len(source[0].labels) == 1
    assert source.problems.counts == {"SSD131": 2, "SSD132": 1, "SSD133": 2}
    assert "left out: 2 SSD131, 1 SSD132, 2 SSD133" in source.describe()


def test_records_that_cannot_be_used_are_left_out_when_asked(tmp_path):
    write_voc(tmp_path, {"a": annotation(thing()), "b": "<annotation>", "c": annotation()})
    (tmp_path / "JPEGImages/c.jpg").unlink()
    source = open_voc(tmp_path, ("train",), problems=Problems("skip"))
    assert source.names == ("a",)
    assert source.problems.counts == {"SSD111": 1, "SSD122": 1}


def test_problems_know_two_policies():
    with pytest.raises(UserError, match="'drop': expected 'error' or 'skip'"):
        Problems("drop")


@pytest.mark.parametrize(
    ("text", "code", "parts"),
    [
        (annotation(thing(corners=(9, 9, 9, 20))), "SSD133", ["(9, 9, 9, 20) has no area"]),
        (annotation(thing(corners=(9, 20, 12, 10))), "SSD133", ["ymin < ymax"]),
        (
            annotation(thing(corners=(1, 1, 102, 9))),
            "SSD132",
            ["2 pixels", "inside the image of 100 x 50 pixels"],
        ),
        (annotation(thing(corners=(-1, 1, 9, 9))), "SSD132", ["2 pixels outside"]),
        (annotation(thing(corners=("nan", 1, 9, 9))), "SSD131", ["(nan, 1, 9, 9) is unreadable"]),
        (annotation(thing(corners=(1, "ten", 9, 9))), "SSD131", ["expected four numbers"]),
        (annotation("<object><name>dog</name></object>"), "SSD131", ["None"]),
        (annotation(thing(), thing("wolf")), "SSD134", ["object 2 (wolf)", "one of dog", "add"]),
        (annotation("<object/>"), "SSD122", ["no <name>"]),
        (annotation(thing(extra="<difficult>?</difficult>")), "SSD122", ["'?', expected 0 or 1"]),
        (
            annotation(size=(50, "1e300")),
            "SSD122",
            ["<size/width> is '1e300'", "whole number of pixels"],
        ),
        (annotation(size=(50, 2**31)), "SSD122", ["<size/width> is '2147483648'"]),
        ('<?xml version="1.0" encoding="no"?><annotation/>', "SSD122", ["unknown encoding: no"]),
        (annotation() + " " * 2**23, "SSD151", ["bytes, expected at most 8,388,608"]),
        (annotation(size=(0, 100)), "SSD122", ["<size/height> is '0'", "whole number of pixels"]),
        ("<annotation/>", "SSD122", ["<size/height> is None"]),
        ("<annotation>", "SSD122", ["cannot be read"]),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "SSD122", ["Entit"]),
    ],
)
def test_bad_annotations_are_named(tmp_path, text, code, parts):
    write_voc(tmp_path, {"bad": text})
    with pytest.raises(DataError) as error:
        open_voc(tmp_path, ("train",), classes=("dog",))
    message = str(error.value)
    assert error.value.code == code
    for part in [code, "bad.xml", *parts]:
        assert part in message


def expect(code, *parts):
    return pytest.raises(DataError, match=f"^{code} .*" + ".*".join(parts))


def test_missing_files_and_folders_are_named(tmp_path):
    write_voc(tmp_path / "data", {"a": annotation(), "b": annotation()}, image_set="train")
    with expect("SSD101", "dataa: the folder does not exist", "holds data"):
        open_voc(tmp_path / "dataa", ("train",))
    with expect("SSD102", r"test\.txt", "Name one or more of train"):
        open_voc(tmp_path / "data", ("test",))
    with expect("SSD102", "'train' does not exist", "Name one or more of data/train"):
        open_voc(tmp_path, ("train",))
    with expect("SSD104", "a is listed twice"):
        open_voc(tmp_path / "data", ("train", "train"))
    with expect("SSD103", "2 images and no object", "give config.data.classes"):
        open_voc(tmp_path / "data", ("train",))
    with pytest.raises(UserError, match=r"(?s)--split.*Name one or more of data/train"):
        open_voc(tmp_path, ())
    with pytest.raises(UserError, match=r"There are none in .*write train\.txt and val\.txt"):
        open_voc(tmp_path / "data/Annotations", ())
    (tmp_path / "data/ImageSets/Main/none.txt").write_text("\n \n")
    with expect("SSD103", r"none\.txt", "lists no image"):
        open_voc(tmp_path / "data", ("none",))
    (tmp_path / "data/JPEGImages/b.jpg").rename(tmp_path / "data/JPEGImages/b.gif")
    with expect("SSD111", "JPEGImages/b", r"\.jpg, \.jpeg, \.png"):
        open_voc(tmp_path / "data", ("train",))
    (tmp_path / "data/Annotations/a.xml").unlink()
    with expect("SSD121", r"a\.xml", "without objects needs one too", "without suffix or flag"):
        open_voc(tmp_path / "data", ("train",))
    (tmp_path / "data/JPEGImages").rename(tmp_path / "data/images")
    with expect("SSD101", "JPEGImages", "holds .*images"):
        open_voc(tmp_path / "data", ("train",))


@pytest.fixture(scope="module")
def unpacked(shared, tmp_path_factory):
    def unpack(name):
        folder = tmp_path_factory.mktemp(name)
        with tarfile.open(shared / "data" / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        return folder

    return unpack


def test_bccd(unpacked):
    (root,) = unpacked("bccd").glob("**/BCCD")
    sources = {
        split: open_voc(root, (split,), problems=Problems("skip"))
        for split in ("train", "val", "test")
    }
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
    boxes = sum(source.object_counts.sum() for source in sources.values())
    found = [error.code for source in sources.values() for error in source.problems.found]
    assert (boxes + len(found), found) == (4888, ["SSD133"] * 2)
    assert sources["test"].classes == ("Platelets", "RBC", "WBC")
    with expect("SSD133", r"00343\.xml, object 4 \(RBC\)", r"\(181, 329, 181, 329\)"):
        open_voc(root, ("train", "val"))


def test_real_defects(unpacked):
    (root,) = (readme.parent for readme in unpacked("defects").glob("**/README.md"))

    def source(kind):
        ids = sorted(path.stem for path in (root / kind / "JPEGImages").iterdir())
        (root / kind / "ImageSets/Main").mkdir(parents=True)
        (root / kind / "ImageSets/Main/all.txt").write_text("\n".join(ids))
        return open_voc(root, (f"{kind}/all",))

    with expect("SSD133", r"BloodImage_00338\.xml"):
        source("zero_extent_box")
    with expect("SSD121", r"000038\.xml"):
        source("image_without_xml")
    parts = source("nested_part_boxes")
    assert len(parts) == 6
    assert {"person", "cow", "motorbike"} == set(parts.classes)
    assert parts.object_counts.tolist() == [1, 4, 1, 3, 2, 2]


def test_the_fingerprint_follows_the_annotations(tmp_path):
    same = [one(tmp_path / name, thing()).fingerprint for name in "ab"]
    other = one(tmp_path / "c", thing(corners=(1, 1, 9, 9))).fingerprint
    assert same[0] == same[1] != other


def test_what_macos_wrote_is_no_image_set(tmp_path):
    write_voc(tmp_path, {"a": annotation(thing())})
    for name in ("ImageSets/Main/train.txt", "JPEGImages/a.jpg"):
        path = tmp_path / name
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    with expect("SSD102", "Name one or more of train$"):
        open_voc(tmp_path, ("val",))
    assert open_voc(tmp_path, ("train",)).names == ("a",)


def test_an_image_that_vanished_is_told(tmp_path):
    source = one(tmp_path, thing())
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"SSD111 .*a\.jpg: the image cannot be read"):
        source[0]
