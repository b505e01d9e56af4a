"""The doctor on folders: real defects, the many kinds met in the wild, and the command itself."""

import json
import pathlib
import re
import tarfile

import cv2
import pytest
from data.doctor_samples import annotation, encoded, thing, voc

from ssd_jax.cli import main
from ssd_jax.data import codes, doctor_report
from ssd_jax.data.doctor import examine
from ssd_jax.data.findings import Finding, folder_findings, yolo_findings
from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.recordio_writer import write_recordio
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.errors import DataError, UserError

PNG = encoded("PNG")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (annotation(thing(), filename="other.png"), {}),
        (annotation(thing(tags=("ymax", "xmin", "xmax", "ymin"))), {}),
        (annotation(thing(corners=("11.5", "13.25", "48.0", "48.75"))), {}),
        (annotation(thing(corners=(0, 0, 79, 59))), {}),
        (annotation(thing(), depth=1), {}),
        (annotation(thing(extra="<difficult>1</difficult>")), {}),
        (annotation(thing(), size=(50, 90)), {"SSD114": 1}),
        (annotation(thing(), thing("wolf")), {"SSD134": 1}),
        (annotation(thing(), thing(corners=(48, 13, 11, 48))), {"SSD133": 1}),
        (annotation(thing(), thing(corners=(11, 13, 90, 48))), {"SSD132": 1}),
        (annotation(thing(), thing()), {"SSD176": 1}),
    ],
    ids=("filename", "order", "floats", "zero-based", "depth", "difficult", "size", "class",
         "inverted", "outside", "duplicate"),
)  # fmt: skip
@pytest.mark.parametrize("image_id", ["a", "ünïcode 图"])
def test_the_many_other_kinds(tmp_path, text, expected, image_id):
    """Each is found, or accepted as docs/doctor.md says."""
    folder = voc(tmp_path, {image_id: text})
    source = open_voc(folder, "all", classes=("dog",), problems=Problems("skip"))
    assert examine(source).counts == expected
    assert folder_findings(folder) == []


def test_a_png_that_calls_itself_jpg(tmp_path):
    folder = voc(tmp_path, {"a": annotation(thing())})
    (folder / "JPEGImages/a.jpg").write_bytes(PNG)
    assert examine(open_voc(folder, "all")).findings == ()


def test_what_has_no_counterpart(tmp_path):
    folder = voc(tmp_path / "VOC2007", {"a": annotation(), "b": annotation(), "c": annotation()})
    (folder / "Annotations/a.xml").unlink()
    (folder / "JPEGImages/b.jpg").unlink()
    (folder / "JPEGImages/c.png").write_bytes(PNG)
    for beside in ("Annotations/._b.xml", "JPEGImages/._d.jpg"):  # of macOS
        (folder / beside).write_bytes(b"")
    found = {each.code: pathlib.Path(each.where).name for each in folder_findings(tmp_path)}
    assert found == {"SSD184": "a.jpg", "SSD185": "b.xml", "SSD175": "c.png"}


@pytest.mark.parametrize("location", [".", "data.yaml"])
def test_what_has_no_counterpart_in_yolo(tmp_path, capsys, location):
    for place in ("images/train/A.jpg", "images/train/w.xml", "other/images/b.jpg", "beside/c.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(PNG)
    labels = ("labels/train/A", "labels/train/a", "labels/train/w", "labels/train/classes")
    for name in (*labels, "other/labels/no", "beside/c", "beside/readme"):
        (tmp_path / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "data.yaml").write_text("{train: [images, beside], val: other, names: [cat]}")
    assert main(["doctor", str(tmp_path / location), "--split", "train"]) == 0
    assert "SSD185 warning, found 2" in capsys.readouterr().out
    found = yolo_findings(open_data(tmp_path, split="train"))
    assert [pathlib.Path(each.where).name for each in found] == ["a.txt", "w.txt"]


@pytest.fixture(scope="module")
def defects(shared, tmp_path_factory):
    """{kind of defect: {(code, file)}} of the real samples."""
    folder = tmp_path_factory.mktemp("defects")
    with tarfile.open(shared / "data/defects.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    found = {}
    for images in folder.glob("**/JPEGImages"):
        root = images.parent
        (root / "ImageSets/Main").mkdir(parents=True)
        ids = "".join(f"{path.stem}\n" for path in sorted(images.iterdir()))
        (root / "ImageSets/Main/all.txt").write_text(ids)
        problems = Problems("skip")
        each = folder_findings(root)
        try:
            each += examine(open_voc(root, "all", problems=problems)).findings
        except DataError:  # nothing is left of it
            each += map(Finding.of, problems.found)
        found[root.name] = {
            (finding.code, pathlib.Path(finding.where.split(",")[0]).name) for finding in each
        }
    return found


def test_real_defects(defects):
    assert defects == {
        "zero_extent_box": {
            ("SSD133", "BloodImage_00338.xml"),
            ("SSD133", "BloodImage_00343.xml"),
        },
        "truncated_jpeg": {("SSD112", "00090.jpg")},
        "bad_exif_orientation": {("SSD172", "00076.jpg"), ("SSD172", "00103.jpg")},
        "nested_part_boxes": set(),
        "image_without_xml": {("SSD121", "000038.xml"), ("SSD184", "000038.jpg")},
    }


# ---- the command ----


@pytest.fixture
def sick(tmp_path):
    """A folder of three images, one of them truncated and one that leaks into the set `val`."""
    texts = {name: annotation(thing(), thing("cat", (1, 1, 80, 60))) for name in "abc"}
    folder = voc(tmp_path / "sick", texts)
    image = folder / "JPEGImages/a.jpg"
    image.write_bytes(image.read_bytes()[:-20])
    (folder / "ImageSets/Main/val.txt").write_text("b\n")
    return folder


def test_the_report_the_picture_and_the_exit_code(sick, tmp_path, capsys):
    options = {"split": ("all",), "against_split": ("val",), "out": tmp_path / "out"}
    code = doctor_report.run_doctor(str(sick), **options, fix=tmp_path / "fixed")
    assert code == 3
    printed = capsys.readouterr().out
    for part in (
        "3 images",
        "dog 3",
        "SSD112 error, found 1",
        "SSD177 error",
        "a.jpg: ",
        "Errors: 2.",
    ):
        assert part in printed
    report = json.loads((tmp_path / "out/doctor.json").read_text())
    assert (report["errors"], report["counts"]) == (2, {"SSD112": 1, "SSD177": 1})
    assert report["findings"][0]["where"].endswith("a.jpg")
    assert report["findings"][0]["severity"] == "error"
    assert "the JPEG file ends early" in report["findings"][0]["message"]
    assert cv2.imread(str(tmp_path / "out/doctor.png")).shape[1] > 1000
    cleaned = open_voc(tmp_path / "fixed", "all")
    assert list(cleaned.names) == ["c"]
    assert examine(cleaned).findings == ()


def test_a_healthy_set_gives_zero(sick, capsys):
    assert doctor_report.run_doctor(str(sick), split=("val",)) == 0
    assert "Errors: 0. Warnings: 0." in capsys.readouterr().out


def test_a_set_of_which_nothing_is_left_is_reported_too(sick, tmp_path, capsys):
    for path in (sick / "Annotations").iterdir():
        path.write_text("<annotation>")
    assert doctor_report.run_doctor(str(sick), split=("all",), out=tmp_path) == 3
    assert "SSD122 error, found 3\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "doctor.json").read_text())["counts"]["SSD122"] == 3
    with pytest.raises(DataError, match="SSD102"):
        doctor_report.run_doctor(str(sick), split=("nowhere",))


def test_boxes_that_are_parts_of_the_side_are_a_finding(sick, capsys):
    for path in (sick / "Annotations").iterdir():
        path.write_text(annotation(thing("dog", (0.1, 0.2, 0.8, 0.9))))
    assert doctor_report.run_doctor(str(sick), split=("all",)) == 3
    assert "SSD137 error, found 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fix", "message"), [("s3://bucket/set", "is remote"), ("there", "already exists")]
)
def test_a_place_that_cannot_be_written_is_told_first(tmp_path, monkeypatch, fix, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/JPEGImages").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        doctor_report.run_doctor("nowhere", fix=fix)


@pytest.mark.parametrize("suffix", ["JPEGImages/*", "Annotations/*"])
def test_no_cleaned_copy_where_nothing_is_clean(sick, tmp_path, capsys, suffix):
    for path in sick.glob(suffix):
        path.write_bytes(b"<broken>")
    fixed = tmp_path / "fixed"
    assert doctor_report.run_doctor(str(sick), split=("all",), fix=fixed) == 3
    assert "because no image is usable" in capsys.readouterr().out
    assert not fixed.exists()


def test_a_label_is_as_wide_as_it_stands_in_the_record_file(sick, tmp_path, capsys):
    source = open_voc(sick, "val")  # two objects: 4 + 6 * 2 numbers here, at least 2 + 5 * 2
    write_recordio(tmp_path / "a.rec", source)
    assert doctor_report.run_doctor(str(tmp_path / "a.rec"), label_width=16) == 0
    assert doctor_report.run_doctor(str(tmp_path / "a.rec"), label_width=15) == 3
    assert "SSD183 error, found 1" in (printed := capsys.readouterr().out)
    assert "Set label_width to 16" in printed
    assert doctor_report.run_doctor(str(sick), split=("val",), label_width=11) == 3
    assert "Set label_width to 12" in capsys.readouterr().out


def test_equal_messages_make_a_histogram(capsys, sick):
    wolf = annotation(thing("wolf"), thing("wolf", (1, 1, 9, 9)), thing())
    (sick / "Annotations/b.xml").write_text(wolf)
    doctor_report.run_doctor(str(sick), split=("val",), classes=("dog",))
    assert re.search(r"SSD134 error, found 2\n.*b\.xml.* and 1 more: unknown class 'wolf'",
                     capsys.readouterr().out)  # fmt: skip


def test_every_code_stands_in_the_table():
    table = (pathlib.Path(__file__).parents[2] / "docs/doctor.md").read_text()
    listed = dict(re.findall(r"^\| (SSD\d+) \| (error|warning) \|", table, re.MULTILINE))
    known = {
        code
        for code in vars(codes).values()
        if isinstance(code, str) and re.fullmatch(r"SSD\d+", code)
    }
    assert listed == {code: Finding(code, "", "", "").severity for code in known}
