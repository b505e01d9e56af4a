"""VOC from tar files to what stock TFDS reads, without TensorFlow."""

import hashlib
import io
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from loopback import WebServer

from ssd_jax.data import codes, storage
from ssd_jax.data.prepare import ARCHIVES, prepare_voc
from ssd_jax.errors import DataError, UserError

SETS = {  # archive: year, {image set: image ids}
    "VOCtrainval_06-Nov-2007.tar": ("2007", {"train": ["000012", "000017"], "val": ["000005"]}),
    "VOCtest_06-Nov-2007.tar": ("2007", {"test": ["000001"]}),
    "VOCtrainval_11-May-2012.tar": ("2012", {"train": ["2008_000008"], "val": ["2008_000002"]}),
}


def image(image_id):
    pixels = np.random.default_rng(int(image_id[-4:])).integers(0, 255, (40, 50, 3), np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def annotation(image_id):
    objects = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated>"
        f"<difficult>{difficult}</difficult><bndbox><xmin>5</xmin><ymin>4</ymin>"
        "<xmax>50</xmax><ymax>40</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for name, difficult in (("dog", 0), ("person", 1))
    )
    return (
        f"<annotation><filename>{image_id}.jpg</filename><size><width>50</width>"
        f"<height>40</height><depth>3</depth></size>{objects}</annotation>"
    ).encode()


def members(name):
    """The files of an archive, as the official one has them."""
    year, sets = SETS[name]
    root = f"VOCdevkit/VOC{year}"
    files = {f"{root}/SegmentationClass/x.png": b"not needed"}
    for image_set, ids in sets.items():
        files[f"{root}/ImageSets/Main/{image_set}.txt"] = "".join(f"{i}\n" for i in ids).encode()
        files[f"{root}/ImageSets/Main/dog_{image_set}.txt"] = b"000000 -1\n"
        files |= {f"{root}/JPEGImages/{i}.jpg": image(i) for i in ids}
        files |= {f"{root}/Annotations/{i}.xml": annotation(i) for i in ids}
    return files


def pack(files, *special):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(folder := tarfile.TarInfo("VOCdevkit"), None)
        folder.type = tarfile.DIRTYPE
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in special:
            tar.addfile(member)
    return buffer.getvalue()


def sums(contents):
    return {
        name: (len(content), hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }


@pytest.fixture(scope="module")
def tars():
    return {name: pack(members(name)) for name in SETS}


@pytest.fixture
def folder(tars, tmp_path):
    (tmp_path / "tars").mkdir()
    for name, content in tars.items():
        (tmp_path / "tars" / name).write_bytes(content)
    return tmp_path / "tars"


@pytest.fixture
def prepared(tars, folder, tmp_path):
    counts = prepare_voc(tmp_path / "out", archives=folder, checksums=sums(tars))
    return tmp_path / "out", counts


def test_stock_tfds_reads_what_was_prepared(prepared):
    out, counts = prepared
    assert counts == {
        "voc/2007": {"test": 1, "train": 2, "validation": 1},
        "voc/2012": {"train": 1, "validation": 1},
    }
    builder = tfds.builder("voc/2007", data_dir=out)
    assert type(builder).__module__ == "tensorflow_datasets.object_detection.voc"
    both = builder.as_data_source("train+validation")
    assert sorted(example["image/filename"] for example in both) == [
        b"000005.jpg", b"000012.jpg", b"000017.jpg"
    ]  # fmt: skip
    (example,) = tfds.data_source("voc/2007", split="test", data_dir=out)
    pixels = cv2.imdecode(np.frombuffer(image("000001"), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(example["image"], pixels)
    names = builder.info.features["objects"]["label"].names
    assert [names[label] for label in example["objects"]["label"]] == ["dog", "person"]
    np.testing.assert_allclose(example["objects"]["bbox"], [(4 / 40, 5 / 50, 1, 1)] * 2)
    assert list(example["objects"]["is_difficult"]) == [False, True]
    assert list(example["objects"]["is_truncated"]) == [True, True]
    assert [names[label] for label in example["labels_no_difficult"]] == ["dog"]
    assert "tensorflow" not in sys.modules


def test_what_is_prepared_is_left_alone(prepared, tmp_path):
    out, counts = prepared
    assert prepare_voc(out, archives=tmp_path / "empty") == counts


def test_the_recorded_checksums_are_those_of_the_official_archives(folder, tmp_path):
    # Sizes as on http://host.robots.ox.ac.uk/pascal/VOC
    with pytest.raises(DataError, match=r"expected 460,032,000") as found:
        prepare_voc(tmp_path / "out", archives=folder, years=("2007",))
    assert found.value.code == codes.CONTENT_DISAGREES
    with pytest.raises(DataError, match=r"expected 1,999,639,040"):
        prepare_voc(tmp_path / "out", archives=folder, years=("2012",))


def test_missing_archives_and_unknown_years(tmp_path):
    with pytest.raises(DataError, match=r"06-Nov-2007.tar.*460,032,000 bytes.*https://") as found:
        prepare_voc(tmp_path / "out", archives=tmp_path)
    assert found.value.code == codes.ARCHIVE_MISSING
    with pytest.raises(UserError, match="'2008', expected one of 2007, 2012"):
        prepare_voc(tmp_path / "out", years=("2008",))


def test_archives_are_downloaded_and_a_cut_is_mended(tars, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "PAUSE", 0.001)
    with WebServer() as web:
        web.files = {f"/mirror/{name}": content for name, content in tars.items()}
        web.cuts = [10**9, 4000]
        options = {"base_url": f"{web.url}/mirror/", "checksums": sums(tars)}
        counts = prepare_voc(tmp_path / "out", **options)
        assert "bytes=4000-" in web.ranges
    assert counts["voc/2007"]["train"] == 2
    assert {path.name for path in (tmp_path / "cache/voc").iterdir()} == set(SETS)


def special(name, **fields):
    member = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (special("VOCdevkit/../../x"), "leads out"),
        (special("/etc/passwd"), "leads out"),
        (special("VOCdevkit/x", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a link"),
        (special("VOCdevkit/x", type=tarfile.LNKTYPE, linkname="../x"), "a link"),
        (special("VOCdevkit/x", type=tarfile.CHRTYPE), "a device"),
        (special("VOCdevkit/x", size=1 << 40), "1,099,511,627,776 bytes"),
    ],
)
def test_hostile_archives_are_refused(tars, folder, tmp_path, member, problem):
    refuse(tars, folder, tmp_path, pack({}, member), codes.NAME_UNSAFE, problem)


def without(name):
    return {key: value for key, value in members("VOCtest_06-Nov-2007.tar").items() if key != name}


ANNOTATION = "VOCdevkit/VOC2007/Annotations/000001.xml"


@pytest.mark.parametrize(
    ("content", "code", "problem"),
    [
        (b"<html>not found</html>" * 100, codes.ARCHIVE_UNREADABLE, "not a tar file"),
        (pack(without("")).rstrip(b"\0")[:-100], codes.ARCHIVE_UNREADABLE, "end of data"),
        (pack(without(ANNOTATION)), codes.ARCHIVE_UNREADABLE, "does not hold VOCdevkit"),
        (pack(without("VOCdevkit/VOC2007/ImageSets/Main/test.txt")), codes.ARCHIVE_UNREADABLE,
         "does not hold"),
        (pack(without(ANNOTATION) | {ANNOTATION: b"<annotation>"}), codes.ARCHIVE_UNREADABLE,
         "000001.xml cannot be read"),
        (pack(without(ANNOTATION) | {ANNOTATION: b"<annotation><object/></annotation>"}),
         codes.ANNOTATION_UNREADABLE, "000001.xml"),
        (pack(without(ANNOTATION) | {ANNOTATION: annotation("1").replace(b"dog", b"unicorn")}),
         codes.ANNOTATION_UNREADABLE, "unicorn"),
        (pack(without(ANNOTATION) | {ANNOTATION: annotation("1").replace(b">50</xm", b">51</xm")}),
         codes.ANNOTATION_UNREADABLE, "1.02"),
    ],
)  # fmt: skip
def test_damaged_archives_are_refused(tars, folder, tmp_path, content, code, problem):
    refuse(tars, folder, tmp_path, content, code, problem)


def refuse(tars, folder, tmp_path, content, code, problem):
    """The test archive of 2007 with this content is refused, and nothing is left of the attempt."""
    name = ARCHIVES["2007"]["test"]
    (folder / name).write_bytes(content)
    checksums = sums(tars | {name: content})
    with pytest.raises(DataError, match=problem) as found:
        prepare_voc(tmp_path / "out", archives=folder, years=("2007",), checksums=checksums)
    assert found.value.code == code
    assert not list((tmp_path / "out").rglob("*array_record*"))


def test_the_module_is_light():
    code = "import sys, ssd_jax.data.prepare; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
