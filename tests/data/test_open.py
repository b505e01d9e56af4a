"""A location tells its format."""

import json
import pathlib
import re
import subprocess

import cv2
import numpy as np
import pytest
from doctor_samples import HEIGHT, WIDTH, annotation, encoded, thing
from loopback import WebServer

from ssd_jax.data import codes
from ssd_jax.data import open as open_module
from ssd_jax.data.convert import convert
from ssd_jax.data.open import open_data, open_parts, split_of_role
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.coco import open_coco
from ssd_jax.data.sources.memory import source_from_arrays
from ssd_jax.errors import DataError, UserError

JPEG = cv2.imencode(".jpg", np.zeros((50, 100, 3), np.uint8))[1].tobytes()
THING = {"class_id": 0, "left": 10, "top": 5, "width": 50, "height": 20}
RECORD = {"file": "a.jpg", "image_size": [{"width": 100, "height": 50}], "annotations": [THING]}


@pytest.fixture
def source(tmp_path):
    """One image with an object of the class `owl`, in a folder of its own."""
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(JPEG)
    box = {"image_id": 1, "bbox": [10, 5, 50, 20], "category_id": 1}
    image = {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
    value = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "owl"}]}
    (folder / "given.json").write_text(json.dumps(value))
    return open_coco(folder / "given.json")


@pytest.fixture
def other(tmp_path, source):
    """The same image as a VOC folder `other`, with the class `elk` first and an `owl`."""
    box = {"image_id": 1, "bbox": [10, 5, 50, 20]}
    path = tmp_path / "given/given.json"
    value = json.loads(path.read_text())
    value["categories"] = [{"id": 1, "name": "elk"}, {"id": 2, "name": "owl"}]
    value["annotations"] = [
        {**box, "category_id": 1},
        {**box, "bbox": [0, 0, 9, 9], "category_id": 2},
    ]
    (tmp_path / "given/other.json").write_text(json.dumps(value))
    return open_coco(tmp_path / "given/other.json")


def labels(source):
    return [[source.classes[label] for label in example.labels] for example in source]


@pytest.mark.parametrize(
    ("place", "words", "location", "split"),
    [
        ("set.rec", {}, "set.rec", ()),
        ("channel/set.rec", {}, "channel", ()),
        ("set.manifest", {}, "set.manifest", ()),
        ("set.jsonl", {}, "set.jsonl#objects", ()),
        ("set.json", {}, "set.json", ()),
        ("set", {"format": "voc"}, "set", ("train",)),
        ("dev/VOC2007", {"format": "voc"}, "dev", ("VOC2007/train",)),
        ("set", {"format": "json"}, "set", "train"),
        ("set", {"format": "json"}, "set/train", ()),
    ],
)
def test_every_format_by_its_location(tmp_path, source, place, words, location, split):
    convert(source, tmp_path / place, **words)
    found = open_data(str(tmp_path / location), split=split)
    assert found[0].image == JPEG
    np.testing.assert_allclose(found[0].boxes, [(0.1, 0.1, 0.6, 0.5)], rtol=1e-6)
    if location != "dev":  # a devkit has no class list; its names are in the annotations
        assert found.classes == ("owl",)
    other = open_data(str(tmp_path / location), split=split, classes=("elk", "owl"))
    assert other.classes == ("elk", "owl")


def test_one_folder_of_images_and_json(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "a.json").write_text(json.dumps(RECORD))
    assert open_data(tmp_path)[0].image == JPEG


def test_class_names_beside_a_record_file(tmp_path, source):
    convert(source, tmp_path / "set.rec")
    (tmp_path / "set.classes.txt").rename(tmp_path / "classes.txt")
    assert open_data(tmp_path / "set.rec").classes == ("owl",)
    (tmp_path / "classes.txt").unlink()
    assert open_data(tmp_path / "set.rec").classes == ("0",)


def test_records_with_another_class_list_go_by_name(tmp_path, other):
    convert(other, tmp_path / "set.rec")
    found = open_data(tmp_path / "set.rec", classes=("owl", "ox", "elk"))
    assert labels(found) == [["elk", "owl"]]
    with pytest.raises(DataError, match=r"SSD134 .*unknown class 'elk', expected one of owl"):
        open_data(tmp_path / "set.rec", classes=("owl",))
    # Numbers are no names, on either side.
    assert open_data(tmp_path / "set.rec", classes=("0", "1")).annotations.labels.tolist() == [0, 1]
    (tmp_path / "set.classes.txt").write_text("0\n1\n")
    assert labels(open_data(tmp_path / "set.rec", classes=("owl", "elk"))) == [["owl", "elk"]]


def test_a_local_name_may_hold_any_sign(tmp_path, source):
    convert(source, tmp_path / "#1?x=y.z/set.json")
    assert len(open_data(tmp_path / "#1?x=y.z/set.json")) == 1
    convert(source, tmp_path / "a@b + c/d@e.json")
    assert len(open_data(tmp_path / "a@b + c/d@e.json")) == 1


def test_several_locations_with_splits_of_their_own(tmp_path, source, other):
    convert(source, tmp_path / "voc", name="train")
    convert(other, tmp_path / "json", format="json", name="val")
    convert(other, tmp_path / "set.rec")
    voc, pair, records = (str(tmp_path / name) for name in ("voc", "json", "set.rec"))
    assert len(open_data(f"{voc}@train")) == 1
    assert len(open_data(f"{voc}@train", split=("none",))) == 1
    found = open_data(f"{voc} + {records} + {pair}@val", split=("train",))
    assert found.classes == ("elk", "owl")
    assert labels(found) == [["owl"], ["elk", "owl"], ["elk", "owl"]]
    assert labels(open_data(f"{pair}@val,val")) == [["elk", "owl"]] * 2
    with pytest.raises(
        UserError, match=r"set\.rec has no splits.*'--config\.data\.train\.image_sets=\(\)'"
    ):
        open_data(f"{voc} + {records}@train", split=("train",))
    with pytest.raises(UserError, match=r"set\.rec has no splits: expected none, got train"):
        open_data(f"{records} + {records}", split=("train",))
    with pytest.raises(UserError, match="no location"):
        open_data("")


def test_several_locations_with_one_list_of_problems(tmp_path, source, other):
    convert(source, tmp_path / "one.rec")
    convert(other, tmp_path / "two.rec")
    both = f"{tmp_path}/one.rec + {tmp_path}/two.rec"
    problems = Problems("skip")
    found = open_data(both, classes=("owl",), problems=problems)
    assert found.problems is problems
    assert (problems.counts, labels(found)) == ({"SSD134": 1}, [["owl"], ["owl"]])
    (tmp_path / "two.rec").write_bytes((tmp_path / "two.rec").read_bytes() + b"more")
    (tmp_path / "two.idx").unlink()
    problems = Problems("skip")
    assert open_data(both, problems=problems).classes == ("elk", "owl")
    assert problems.counts == {"SSD142": 1}  # once, though the names were not known at first
    (tmp_path / "two.classes.txt").unlink()
    with pytest.raises(UserError, match=r"different classes.*owl; 0, 1.*data\.classes"):
        open_data(both, problems=Problems("skip"))


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://b/a@b/x.rec", [("s3://b/a@b/x.rec", ("train",))]),
        ("s3://b/voc@val", [("s3://b/voc", ("val",))]),
        ("s3://b/a@b/voc@", [("s3://b/a@b/voc", ())]),
        ("https://me@h/x.rec?sign=a@b", [("https://me@h/x.rec?sign=a@b", ("train",))]),
        ("a@b/x.manifest#boxes", [("a@b/x.manifest#boxes", ("train",))]),
        (
            "tfds:voc/2007@train, test[:10%] + d + x.rec",
            [("tfds:voc/2007", ("train", "test[:10%]")), ("d", ("train",)), ("x.rec", ())],
        ),
    ],
)
def test_which_splits_belong_to_a_location(location, expected):
    assert open_parts(location, ("train",)) == expected


def test_remote_sets_are_staged(tmp_path, source, monkeypatch):
    """The copies of a bucket `s3://b` lie in a folder here."""
    convert(source, tmp_path / "sets/set.json")
    convert(source, tmp_path / "sets/far.manifest")
    convert(source, tmp_path / "sets/voc")
    convert(source, tmp_path / "sets/far.rec")
    staged = []

    def stage(url):
        staged.append(url)
        path = tmp_path / url.removeprefix("s3://b/").partition("?")[0]
        if not path.exists():
            raise DataError(codes.OBJECT_MISSING, url, "it is not there", "Correct the address")
        return path

    monkeypatch.setattr(open_module, "stage", stage)
    monkeypatch.setattr(open_module, "read_bytes", str.encode)
    assert open_data("s3://b/sets/set.json")[0].image == JPEG
    assert open_data("s3://b/sets/voc", split=("train",))[0].image == JPEG
    (tmp_path / "sets/voc/JPEGImages/a.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "sets/yolo.yaml").write_text("{train: voc/JPEGImages, names: [owl]}")
    assert open_data("s3://b/sets/yolo.yaml@train")[0].image == JPEG
    assert open_data("s3://b/sets/far.manifest")[0].image == b"s3://b/sets/far/a.jpg"
    folders = ["s3://b/sets", "s3://b/sets/voc", "s3://b/sets"]
    assert staged == [*folders, "s3://b/sets/far.manifest"]
    assert open_data("s3://b/sets/far.rec").classes == ("owl",)
    signed = open_data("s3://b/sets/far.rec?signed=x.y", classes=("elk", "owl"))
    assert labels(signed) == [["owl"]]
    with pytest.raises(DataError, match=r"SSD161 s3://b/none\.rec"):
        open_data("s3://b/none.rec")
    with pytest.raises(UserError, match="a web server has no folders"):
        open_data("https://b/sets/set.json")


def test_what_stands_beside_a_remote_record_file(tmp_path, other, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    convert(other.take([0]), tmp_path / "val.rec")
    (tmp_path / "val.idx").write_text("seven\t0\n")
    with WebServer() as server:
        for folder in ("open", "secret"):  # the second one answers 403, not 404
            server.files[f"/{folder}/val.rec"] = (tmp_path / "val.rec").read_bytes()
        server.files["/open/val.idx"] = (tmp_path / "val.idx").read_bytes()
        server.files["/open/val.classes.txt"] = b"elk\nowl\n"
        found = open_data(f"{server.url}/open/val.rec?v=1", classes=("owl", "elk"))
        assert (labels(found), found.names) == ([["elk", "owl"]], ["seven"])
        assert [file.rpartition(".")[2] for file in found.files] == ["rec", "idx"]
        bare = open_data(f"{server.url}/secret/val.rec?v=1")
    assert (bare.classes, bare.names) == (("0", "1"), ["0"])


@pytest.mark.parametrize(
    ("file", "location", "format"),
    [
        ("a.xml", ".", "XML of LabelImg"),
        ("train/a.xml", ".", "XML of LabelImg"),
        ("boxes.csv", ".", "a CSV of boxes"),
        ("boxes.csv", "boxes.csv", "a CSV of boxes"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, file, location, format):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("")
    for split in ((), ("train",)):
        with pytest.raises(UserError, match=f"this looks like {format}.*What is not read"):
            open_data(tmp_path / location, split=split)


def documented(language):
    """The code of the first block in a language in docs/data.md."""
    text = (pathlib.Path(__file__).parents[2] / "docs/data.md").read_text()
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def test_the_documented_way_from_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").write_bytes(encoded())
    rows = ["file,class,xmin,ymin,xmax,ymax", "a.jpg,dog,0,0,10,20", "a.jpg,cat,1,2,10,20"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    exec(documented("python"), {})
    found = open_data(tmp_path / "train.json")
    assert (found.classes, found[0].labels.tolist()) == (("dog", "cat"), [0, 1])
    sides = np.array([WIDTH, HEIGHT] * 2)
    np.testing.assert_allclose(found[0].boxes * sides, [(0, 0, 10, 20), (1, 2, 10, 20)], rtol=1e-6)
    assert found[0].size == (HEIGHT, WIDTH)


@pytest.mark.parametrize("labels", ["labels/train", "train/labels", "train"])
def test_the_documented_file_for_yolo(tmp_path, labels):
    image = tmp_path / labels.replace("labels", "images") / "a.jpg"
    image.parent.mkdir(parents=True)
    image.write_bytes(encoded())
    (tmp_path / labels).mkdir(parents=True, exist_ok=True)
    if labels == "labels/train":
        (tmp_path / "notes.json").write_text("{}")  # of Label Studio
    (tmp_path / labels / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    for split in ((), ("train",)):
        with pytest.raises(UserError, match=r"YOLO's format, but there is no data\.yaml"):
            open_data(tmp_path, split=split)
    text = documented("yaml").replace("images/train", str(image.parent.relative_to(tmp_path)))
    (tmp_path / "data.yaml").write_text(text)
    found = open_data(tmp_path, split="train")
    assert (found.classes, found[0].labels.tolist()) == (("cat", "dog"), [1])


def test_the_documented_way_from_labelimg(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.jpg").write_bytes(encoded())
        (tmp_path / f"{name}.xml").write_text(annotation(thing()))
    subprocess.run(["bash", "-ec", documented("sh")], cwd=tmp_path, check=True)
    found = {split: list(open_data(tmp_path, split=split).names) for split in ("train", "val")}
    assert found == {"train": list("abcdf"), "val": ["e"]}


def test_what_a_relative_path_counts_from_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^SSD101 data/voc: .* counts from .*, {tmp_path}$"):
        open_data("data/voc")
    with pytest.raises(DataError, match=r"Correct the path$"):
        open_data(tmp_path / "data/voc")


def test_what_is_none_of_these_is_told(tmp_path, source):
    with pytest.raises(DataError, match=r"SSD101 .*nowhere: there is no such file or folder"):
        open_data(tmp_path / "nowhere")
    (tmp_path / "set.txt").write_text("")
    with pytest.raises(
        DataError, match=r"(?s)set\.txt: an unknown format.*RecordIO.*tfds:voc/2007"
    ):
        open_data(tmp_path / "set.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"(?s)empty holds no data set that is known.*COCO"):
        open_data(tmp_path / "empty")
    with pytest.raises(UserError, match=r"given\.json has no splits: expected none, got train"):
        open_data(tmp_path / "given/given.json", split=("train",))
    with pytest.raises(UserError, match=r"holds a file of COCO, .*given\.json. Give that file"):
        open_data(tmp_path / "given")
    with pytest.raises(UserError, match=r"tfds:voc/2007 needs a split, got none"):
        open_data("tfds:voc/2007")
    with pytest.raises(UserError, match=r"holds a file of COCO, .*given\.json. Give that file"):
        open_data(tmp_path / "given", split=("val",))


def test_files_need_no_split_that_is_named_as_their_role(tmp_path, source):
    convert(source, tmp_path / "voc", name="train")
    convert(source, tmp_path / "set.rec")
    records, folder = str(tmp_path / "set.rec"), str(tmp_path / "voc")
    for place, named, role, expected in [
        (records, ("train",), "train", ()),
        (records, ("train",), "val", ("train",)),
        (f"{records} + {records}", ("val",), "val", ()),
        (f"{records} + {folder}", ("train",), "train", ("train",)),
        ("s3://bucket/train.json", ("train",), "train", ()),
        (folder, ("train",), "train", ("train",)),
        ("", ("train",), "train", ("train",)),
    ]:
        assert split_of_role(place, named, role) == expected


def test_a_folder_without_splits_says_where_splits_are_known(tmp_path, source):
    convert(source, tmp_path / "pairs", format="json", name="val")
    with pytest.raises(UserError, match=r"nothing there has the split train\. Expected a folder"):
        open_data(tmp_path / "pairs", split=("train",))
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"nothing there has the split train"):
        open_data(tmp_path / "images", split=("train",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": [{"image_id": 1}' + " " * 2**16 + '], "images": []}', "a file of COCO"),
        ('{"version": "5.4.1", "flags": {}, "shapes": []}', "LabelMe's format, which is not read"),
    ],
)
def test_json_files_of_others_are_not_taken_for_sagemakers(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        open_data(tmp_path)


@pytest.mark.parametrize("extra", [{"image_id": 7}, {"images": 1}, {"shapes": "round"}])
def test_records_of_sagemaker_may_have_keys_of_their_own(tmp_path, source, extra):
    convert(source, tmp_path / "set", format="json")
    (path, *_) = sorted((tmp_path / "set").rglob("*.json"))
    path.write_text(json.dumps(extra | json.loads(path.read_text())))
    assert len(open_data(path.parent.with_name(path.parent.name.removesuffix("_annotation"))))


def test_a_class_is_listed_once(tmp_path, source):
    convert(source, tmp_path / "set.rec")
    (tmp_path / "set.classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match=r"SSD152 .*classes\.txt: 'cat' is listed twice"):
        open_data(tmp_path / "set.rec")


def test_a_class_name_alone_is_one_class(tmp_path):
    example = {"file": "a.jpg", "image_size": [{"width": WIDTH, "height": HEIGHT, "depth": 3}]}
    box = {"class_id": 0, "left": 1, "top": 1, "width": 5, "height": 5}
    (tmp_path / "a.json").write_text(json.dumps(example | {"annotations": [box]}))
    (tmp_path / "a.jpg").write_bytes(encoded())
    assert open_data(tmp_path, classes="square").classes == ("square",)
    boxes = [[[0.1, 0.1, 0.5, 0.5]]]
    assert source_from_arrays([encoded()], boxes, [[0]], "square").classes == ("square",)
