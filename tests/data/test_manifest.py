"""Augmented manifests: JSON lines with a reference to an image and its annotation."""

import json

import numpy as np
import pytest

from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.json_records import MAX_RECORD_BYTES
from ssd_jax.data.sources.manifest import open_manifest
from ssd_jax.errors import DataError, UserError

THING = {"class_id": "1", "left": 10, "top": 5, "width": 50, "height": 20}


def line(*things, image="a.jpg", label="boxes", names=None, **more):
    content = {"image_size": [{"width": 100, "height": 50, "depth": 3}], "annotations": things}
    names = {"0": "cat", "1": "dog"} if names is None else names
    metadata = {"class-map": names, "type": "groundtruth/object-detection", "job-name": "j"}
    return {"source-ref": image, label: content, f"{label}-metadata": metadata, **more}


def write(folder, *lines):
    path = folder / "train.manifest"
    texts = (text if isinstance(text, str) else json.dumps(text) for text in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    return path


def expect(code, *parts):
    return pytest.raises(DataError, match=f"(?s)^{code} .*" + ".*".join(parts))


def test_lines_of_a_manifest(tmp_path):
    other = {"weather": "rain", "weather-metadata": {"class-map": 3}, "mask-ref": "s3://b/c.png"}
    path = write(tmp_path, line(THING, {**THING, "class_id": 0}), "", line(image="b.jpg", **other))
    source = open_manifest(path)
    assert (source.classes, source.names) == (("cat", "dog"), ("a", "b"))
    assert source.object_counts.tolist() == [2, 0]
    example = source[0]
    np.testing.assert_allclose(example.boxes[0], (0.1, 0.1, 0.6, 0.5), rtol=1e-6)
    assert (example.labels.tolist(), example.image) == ([1, 0], b"a")
    assert (example.name, example.size) == (str(tmp_path / "a.jpg"), (50, 100))


def test_the_class_maps_of_all_lines_count(tmp_path):
    zero = line({**THING, "class_id": 0}, image="b.jpg", names={"0": "cat"})
    path = write(tmp_path, line(THING, names={"1": "dog"}), zero)
    assert open_manifest(path).classes == ("cat", "dog")
    swapped = open_manifest(path, classes=("dog", "cat"))
    assert swapped.annotations.labels.tolist() == [0, 1]
    with expect("SSD152", "line 2", "class 1 is 'cow', but 'dog' in other records"):
        open_manifest(write(tmp_path, line(THING), line(THING, image="b.jpg", names={"1": "cow"})))


def test_references_with_a_scheme_are_read_when_asked_for(tmp_path):
    lines = (
        line(THING, image="s3://bucket/x/a.jpg"),
        line(THING, image="file://" + str(tmp_path / "b.jpg")),
    )
    path = write(tmp_path, *lines)
    asked = []
    source = open_manifest(path, read_remote=lambda url: asked.append(url) or b"far")
    assert (source.names, asked) == (("a", "b"), [])
    assert (source[0].image, source[1].image) == (b"far", b"b")
    assert asked == [source.locate(0)] == ["s3://bucket/x/a.jpg"]
    with pytest.raises(UserError, match=r"line 1: s3://bucket/x/a.jpg is not a local file"):
        open_manifest(path)


def test_relative_references_count_from_the_base(tmp_path):
    path = write(tmp_path, line(THING, image="x/a.jpg"))
    source = open_manifest(path, base="s3://bucket/set/", read_remote=str.encode)
    assert source[0].image == b"s3://bucket/set/x/a.jpg"
    (tmp_path / "images/x").mkdir(parents=True)
    (tmp_path / "images/x/a.jpg").write_bytes(b"inner")
    assert open_manifest(path, base=tmp_path / "images")[0].image == b"inner"


def test_the_label_attribute_is_the_one_with_annotations(tmp_path):
    both = line(THING) | line(THING, label="checked")
    with pytest.raises(UserError, match=r"line 1: boxes, checked have.*MANIFEST#boxes"):
        open_manifest(write(tmp_path, both))
    assert len(open_manifest(write(tmp_path, both), label="checked")) == 1
    with pytest.raises(UserError, match=r"boxes, checked have annotations"):
        open_manifest(write(tmp_path, line(THING), line(image="b.jpg", label="checked")))
    with expect("SSD155", "line 1: no attribute 'other' among 'source-ref', 'boxes'"):
        open_manifest(write(tmp_path, line(THING)), label="other")
    video = {"source-ref": "a.jpg", "boxes-ref": "s3://b/SeqLabel.json"}
    with expect("SSD155", "no attribute with 'annotations'.*video frames cannot be read"):
        open_manifest(write(tmp_path, video))


@pytest.mark.parametrize(
    ("bad", "code", "part"),
    [
        ("{", "SSD122", "cannot be read"),
        ("3", "SSD122", "'source-ref' is None"),
        (line(THING, image=""), "SSD122", "'source-ref' is ''"),
        (line(THING, image="missing.jpg"), "SSD111", "missing.jpg"),
        (line(THING, image="a.jpg"), "SSD104", "already has a record"),
        (line(THING, image="b.jpg", names=[]), "SSD122", "holds no class-map"),
        (
            line(THING, image="b.jpg", names={"one": "cat"}),
            "SSD122",
            "'one': 'cat', expected an id",
        ),
        (line(3, image="b.jpg"), "SSD122", "object 1: it is 3"),
        (line({**THING, "width": "wide"}, image="b.jpg"), "SSD131", "width 'wide'"),
        ("x" * (MAX_RECORD_BYTES + 5), "SSD151", "more than 8,388,608 bytes"),
    ],
)
def test_what_cannot_be_used_is_named_or_left_out(tmp_path, bad, code, part):
    path = write(tmp_path, line(THING), bad, line(THING, image="c.jpg"))
    with expect(code, part) as error:
        open_manifest(path)
    assert "train.manifest, line 2" in str(error.value)
    source = open_manifest(path, problems=Problems("skip"))
    assert "c" in source.names
    assert source.problems.counts[code] == 1


def test_a_missing_manifest_is_told(tmp_path):
    with expect("SSD121", r"no\.manifest"):
        open_manifest(tmp_path / "no.manifest")
    with expect("SSD103", "0 images"):
        open_manifest(write(tmp_path, ""))
