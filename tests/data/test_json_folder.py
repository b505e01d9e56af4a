"""Images with one JSON annotation each, as SageMaker's image channels."""

import json

import numpy as np
import pytest

from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.json_folder import open_json_folder
from ssd_jax.errors import DataError

CATEGORIES = [{"class_id": 0, "name": "cat"}, {"class_id": 1, "name": "dog"}]


def thing(class_id=1, left=10, top=5, width=50, height=20, **more):
    sides = {"left": left, "top": top, "width": width, "height": height}
    return {"class_id": class_id, **sides, **more}


def record(*things, file="a.jpg", **more):
    size = [{"width": 100, "height": 50, "depth": 3}]
    return {"file": file, "image_size": size, "annotations": list(things), **more}


def write(folder, *records, annotations=None):
    """The images of the records, and each record (or text) as a JSON file."""
    annotations = annotations or folder
    for number, value in enumerate(records):
        annotations.mkdir(parents=True, exist_ok=True)
        text = value if isinstance(value, str) else json.dumps(value)
        path = annotations / f"{number}.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        if isinstance(value, dict) and value.get("file"):
            image = folder / value["file"]
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(f"bytes of {value['file']}".encode())
    return folder


def expect(code, *parts):
    return pytest.raises(DataError, match=f"(?s)^{code} .*" + ".*".join(parts))


def test_a_record(tmp_path):
    source = open_json_folder(
        write(tmp_path, record(thing(), thing("0", 0, 0, 100.5, 50), categories=CATEGORIES))
    )
    example = source[0]
    np.testing.assert_allclose(example.boxes, [(0.1, 0.1, 0.6, 0.5), (0, 0, 1, 1)], rtol=1e-6)
    assert (example.size, example.image) == ((50, 100), b"bytes of a.jpg")
    assert (source.classes, example.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert (source.names, example.name) == (("a",), str(tmp_path / "a.jpg"))


def test_two_channels_subfolders_and_no_objects(tmp_path):
    images, annotations = tmp_path / "train", tmp_path / "train_annotation"
    records = record(thing(), file="x/a.jpg"), record(file="y/a.jpg"), record(file="ü 1.PNG")
    write(images, *records, annotations=annotations)
    source = open_json_folder(images, annotations)
    assert source.names == ("x/a", "y/a", "ü 1")
    assert source.object_counts.tolist() == [1, 0, 0]
    assert source[1].image == b"bytes of y/a.jpg"
    # What macOS puts beside copies is passed over.
    for beside in (images / "x/._a.jpg", annotations / "._0.json"):
        beside.write_bytes(b"\0\5\26\7")
    assert open_json_folder(images, annotations).names == source.names


def test_linked_folders_are_read_and_hidden_ones_are_not(tmp_path):
    images, annotations = tmp_path / "train", tmp_path / "train_annotation"
    write(images, record(thing(), file="x/a.jpg"), annotations=annotations)
    write(tmp_path / "store", record(thing(), file="b.jpg"))
    (tmp_path / "store/0.json").write_text(json.dumps(record(thing(), file="y/b.jpg")))
    for folder in (images, annotations):
        (folder / "y").symlink_to(tmp_path / "store")
        (folder / ".ipynb_checkpoints").mkdir()
    (images / ".ipynb_checkpoints/a-checkpoint.jpg").touch()
    (annotations / ".ipynb_checkpoints/0-checkpoint.json").write_text("{}")
    assert open_json_folder(images, annotations).names == ("a", "b")
    (tmp_path / "one").mkdir()
    (tmp_path / "one/y").symlink_to(tmp_path / "store")
    assert open_data(tmp_path / "one").names == ("b",)


def test_difficult_is_an_extension(tmp_path):
    source = open_json_folder(write(tmp_path, record(thing(difficult=1), thing(difficult=False))))
    assert source[0].difficult.tolist() == [True, False]


def test_names_of_the_ids_in_use_are_believed(tmp_path):
    first = record(thing(1), categories=CATEGORIES[1:])
    last = record(thing(3), file="b.jpg", categories=[{"class_id": "3", "name": "owl"}])
    write(tmp_path, first, last)
    assert open_json_folder(tmp_path).classes == ("0", "dog", "2", "owl")
    source = open_json_folder(tmp_path, classes=("owl", "dog"))
    assert source.annotations.labels.tolist() == [1, 0]
    with expect("SSD134", "1.json, object 1", "'owl', expected one of dog, cat"):
        open_json_folder(tmp_path, classes=("dog", "cat"))


def test_names_of_other_ids_are_not(tmp_path):
    """SageMaker's COCO notebook counts ids from 0, and leaves COCO's own in `categories`."""
    write(tmp_path, record(thing(0), thing(1), categories=[{"class_id": 1, "name": "person"}]))
    assert open_json_folder(tmp_path).classes == ("0", "1")
    source = open_json_folder(tmp_path, classes=("person", "bicycle"))
    assert source[0].labels.tolist() == [0, 1]
    with expect("SSD134", "object 2", "class_id 1'"):
        open_json_folder(tmp_path, classes=("person",))


def test_names_do_not_count_against_classes_that_have_none(tmp_path):
    """The classes of a job are those of its train channel; a `.rec` file there has no names."""
    write(tmp_path, record(thing(1), thing(0), categories=CATEGORIES))
    source = open_json_folder(tmp_path, classes=("0", "1", "2"))
    assert source[0].labels.tolist() == [1, 0]
    with expect("SSD134", "object 1", "'dog', expected one of 0"):
        open_json_folder(tmp_path, classes=("0",))
    digits = [{"class_id": 0, "name": "1"}, {"class_id": 1, "name": "0"}]
    write(tmp_path, record(thing(1), thing(0), categories=digits))
    assert open_json_folder(tmp_path, classes=("0", "1"))[0].labels.tolist() == [0, 1]


def test_contradicting_names_are_found(tmp_path):
    other = [{"class_id": 0, "name": "cow"}]
    cat = record(thing(0), categories=CATEGORIES)
    write(tmp_path / "a", cat, record(thing(0), file="b.jpg", categories=other))
    with expect("SSD152", "1.json", "class 0 is 'cow', but 'cat' in other records"):
        open_json_folder(tmp_path / "a")
    write(tmp_path / "b", record(thing(0), categories=CATEGORIES + other))
    with expect("SSD152", "0.json", "class 0 is 'cat' and 'cow'"):
        open_json_folder(tmp_path / "b")
    same = [{"class_id": 0, "name": "cat"}, {"class_id": 1, "name": "cat"}]
    write(tmp_path / "c", record(thing(0), categories=same))
    with expect("SSD152", "0.json", "the classes 0 and 1 are both named 'cat'"):
        open_json_folder(tmp_path / "c")
    far = [{"class_id": 2**16, "name": "far"}, *CATEGORIES]
    write(tmp_path / "d", cat, record(thing(0), file="b.jpg", categories=far))
    with expect("SSD152", "1.json", "class 65536 is 'far', but ids go from 0 to 65,535"):
        open_json_folder(tmp_path / "d")
    source = open_json_folder(tmp_path / "d", problems=Problems("skip"))
    assert (source.classes, source.problems.counts) == (("cat", "dog"), {"SSD152": 1})


def test_one_bad_record_does_not_take_the_names_from_the_others(tmp_path):
    good = [record(thing(i % 2), file=f"{i}.jpg", categories=CATEGORIES) for i in range(3)]
    write(tmp_path / "id", *good, record(thing(15), file="bad.jpg", categories=CATEGORIES))
    with expect("SSD134", "3.json, object 1", "'class_id 15, which has no name'.*one of cat, dog"):
        open_json_folder(tmp_path / "id")
    source = open_json_folder(tmp_path / "id", problems=Problems("skip"))
    assert (source.classes, source.problems.counts) == (("cat", "dog"), {"SSD134": 1})
    assert source.object_counts.tolist() == [1, 1, 1, 0]
    # A number that others name is no name for a record that names others.
    other = record(thing(1), file="bad.jpg", categories=CATEGORIES[:1])
    write(tmp_path / "other", *good, other)
    with expect("SSD134", "3.json, object 1", "'class_id 1, which has no name'"):
        open_json_folder(tmp_path / "other")


def test_a_record_without_names_has_those_of_the_others(tmp_path):
    unnamed = [record(thing(0), file="b.jpg"), record(thing(1), file="c.jpg")]
    write(tmp_path, record(thing(1), categories=CATEGORIES), *unnamed)
    source = open_json_folder(tmp_path)
    assert (source.classes, source.annotations.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    write(tmp_path, record(thing(1), categories=CATEGORIES), record(thing(2), file="b.jpg"))
    with expect("SSD134", "1.json, object 1", "'class_id 2, which has no name'"):
        open_json_folder(tmp_path)


@pytest.mark.parametrize(
    ("value", "code", "part"),
    [
        ("{", "SSD122", "0.json.*cannot be read"),
        ("\ud800", "SSD122", "cannot be read"),
        ("[" * 100_000, "SSD122", "too deeply nested"),
        ('{"file": "a.jpg", "file": "b.jpg"}', "SSD122", "'file' appears twice"),
        ("[]", "SSD122", "'file' is None, expected a string"),
        ('{"file": "\\ud800"}', "SSD122", "'file' is "),
        ('{"file": "a\\u0000.jpg"}', "SSD122", "'file' is "),
        ('{"file": "missing.jpg"}', "SSD111", "missing.jpg"),
        ('{"file": "' + "x" * 300 + '"}', "SSD111", "no such file"),
        ('{"file": "../a.jpg"}', "SSD153", "'../a.jpg' is outside"),
        ('{"file": "/etc/passwd"}', "SSD153", "expected a path inside"),
        (record() | {"image_size": []}, "SSD122", r"'image_size' is \[\]"),
        (record() | {"image_size": [{"width": 0, "height": 5}]}, "SSD122", "'width' is 0"),
        (record() | {"image_size": [{"width": 5, "height": 1e99}]}, "SSD122", "'height' is 1e"),
        (record() | {"annotations": {}}, "SSD122", "'annotations' is {}, expected a list"),
        (record([]), "SSD122", r"object 1: it is \[\]"),
        (record(thing(difficult=2)), "SSD122", "object 1: 'difficult' is 2, expected 0 or 1"),
        (record(categories=[3]), "SSD122", "a class is None: None"),
        (record(thing(left="10")), "SSD131", "left '10', top 5.*expected four numbers"),
        (record(thing(top=float("nan"))), "SSD131", "top nan"),
        (record(thing(top=float("inf"))), "SSD131", "top inf"),
        (record(thing(width=10**400)), "SSD131", "width 1000"),
        (record(thing(width=True)), "SSD131", "width True"),
        (record(thing(height=None)), "SSD131", "height None"),
        (record(thing(width=0)), "SSD133", "width 0, height 20.*no area"),
        (record(thing(height=-3)), "SSD133", "height -3"),
        (record(thing(left=60)), "SSD132", "10 pixels outside"),
        (record(thing(class_id=-1)), "SSD134", "class_id -1"),
        (record(thing(class_id=10**30)), "SSD134", "class_id 1000"),
        (record(thing(class_id=[])), "SSD134", r"class_id \[\]"),
        (record(thing(class_id=0.5)), "SSD134", r"class_id 0\.5"),
    ],
)
def test_what_cannot_be_used_is_named_or_left_out(tmp_path, value, code, part):
    write(tmp_path, value, record(thing(0), file="good.jpg"))
    with expect(code, part):
        open_json_folder(tmp_path)
    source = open_json_folder(tmp_path, problems=Problems("skip"))
    assert source.annotations.labels.tolist() == [0]
    assert source.problems.counts[code] == 1


def test_each_image_has_one_annotation(tmp_path):
    write(tmp_path, record(), record(file="./a.jpg"))
    with expect("SSD104", "1.json", "'a.jpg' already has a record"):
        open_json_folder(tmp_path)
    (tmp_path / "1.json").unlink()
    (tmp_path / "b.png").write_bytes(b"")
    with expect("SSD121", "b.png: no JSON file under", "empty list"):
        open_json_folder(tmp_path)


def test_absurd_sizes_and_missing_folders_are_refused(tmp_path):
    write(tmp_path, record())
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**40)
    with expect("SSD151", "huge.json: more than 8,388,608 bytes"):
        open_json_folder(tmp_path)
    with expect("SSD101", "nowhere: there is no such folder"):
        open_json_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with expect("SSD103", "0 images"):
        open_json_folder(tmp_path / "empty")


def test_an_image_that_vanished_is_told(tmp_path):
    source = open_json_folder(write(tmp_path, record(thing())))
    (tmp_path / "a.jpg").unlink()
    with expect("SSD111", "the image cannot be read"):
        source[0]
