"""The doctor: each defect is found under its code, and nothing is found where nothing is wrong."""

import os

import numpy as np
import pytest
from doctor_samples import (
    HEIGHT,
    WIDTH,
    annotation,
    encoded,
    overwritten,
    picture,
    thing,
    voc,
    with_orientation,
)

from ssd_jax.data import codes, findings
from ssd_jax.data.convert import convert
from ssd_jax.data.doctor import check_before_training, clean, examine
from ssd_jax.data.findings import best_ious
from ssd_jax.data.sources.base import Problems, class_ids, source_of_objects
from ssd_jax.data.sources.recordio import open_recordio
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.errors import DataError, UserError

JPEG, PNG = encoded(), encoded("PNG")
BOX = (0.1, 0.2, 0.6, 0.8)
CORNER = (0, 0, 0.5, 0.5)


def make(
    *images,
    classes=("cat", "dog"),
    names=None,
    size=(HEIGHT, WIDTH),
    problems=None,
    place="file",
    files=(),
):
    """A source of images given as (bytes, (class, box), ...)."""
    objects = [thing for _, *things in images for thing in things]
    boxes = np.array([box for _, box in objects], np.float64).reshape(-1, 4)

    def read_image(index):
        if images[index][0] is None:
            raise DataError(codes.IMAGE_MISSING, f"file {index}", "gone", "Put it back")
        return images[index][0]

    return source_of_objects(
        names=names or tuple(map(str, range(len(images)))),
        sizes=np.tile(np.array(size), (len(images), 1)),
        object_counts=np.array([len(things) for _, *things in images]),
        written=boxes,
        boxes=boxes,
        labels=class_ids([name for name, _ in objects], classes),
        difficult=np.zeros(len(objects), bool),
        classes=classes,
        read_image=read_image,
        locate=lambda index: f"{place} {index}",
        problems=problems or Problems("skip"),
        locate_object=lambda image, number: f"file {image}, object {number}",
        label_text=lambda k: objects[k][0],
        files=files,
    )


def clean_set(**options):
    return make((encoded(), ("cat", BOX)), (encoded(), ("dog", BOX)), **options)


def with_first(data, *, things=(("cat", BOX),), **options):
    return make((data, *things), (encoded(), ("dog", BOX), ("cat", CORNER)), **options)


def test_nothing_is_found_in_a_clean_set():
    diagnosis = examine(make((encoded(), ("cat", BOX)), (encoded("PNG"), ("dog", BOX))))
    assert diagnosis.findings == ()
    assert diagnosis.statistics == {
        "images": 2,
        "images_without_objects": 0,
        "objects": 2,
        "difficult_objects": 0,
        "objects_by_class": {"cat": 1, "dog": 1},
        "most_objects_in_an_image": 1,
        "label_width": 7,
        "unreached_share": None,
    }


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (JPEG[:-20], "SSD112", "ends early"),
        (b"GIF89a", "SSD112", "JPEG or PNG"),
        (b"", "SSD112", "0 bytes"),
        (overwritten(PNG), "SSD112", "damaged"),
        (overwritten(JPEG), "SSD173", "Corrupt JPEG data"),
        (encoded(image=picture().resize((40, 30))), "SSD114", "40 x 30 pixels, expected 80 x 60"),
        (with_orientation(3), "SSD171", "orientation 3"),
        (with_orientation(0), "SSD172", "orientation 0, expected 1 to 8"),
        (None, "SSD111", "gone"),
    ],
)
def test_bad_images(data, code, words, capfd):
    (finding,) = examine(with_first(data)).findings
    assert (finding.code, finding.where, finding.image) == (code, "file 0", 0)
    assert words in finding.message
    assert "Corrupt" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "data",
    [
        encoded(image=picture().convert("L")),
        encoded(image=picture().convert("CMYK")),
        encoded("PNG", picture().convert("RGBA")),
        encoded(progressive=True),
        with_orientation(1),
    ],
    ids=("grey", "CMYK", "alpha", "progressive", "upright"),
)
def test_unusual_images_that_are_accepted(data):
    assert examine(with_first(data)).findings == ()


def test_a_turned_image_with_the_size_of_the_stored_one_is_an_error():
    stored, turned = ((HEIGHT, WIDTH), (WIDTH, HEIGHT))
    found = {
        size: examine(make((with_orientation(6), ("cat", BOX), ("dog", CORNER)), size=size)).counts
        for size in (stored, turned)
    }
    assert found == {stored: {"SSD114": 1, "SSD171": 1}, turned: {"SSD171": 1}}


def test_many_images_are_told_apart(capfd):
    """Only the damaged ones, wherever they stand; other words on standard error are passed on."""
    images = [(encoded(), ("cat", BOX), ("dog", CORNER)) for _ in range(70)]
    images[3], images[66] = ((overwritten(JPEG), *images[0][1:]), (JPEG[:-20], *images[0][1:]))
    source = make(*images)
    read = source.read_image

    def read_image(index):
        if index == 10:
            os.write(2, b"somebody else\n")
        return read(index)

    source.read_image = read_image
    found = [(finding.code, finding.image) for finding in examine(source).findings]
    assert found == [("SSD173", 3), ("SSD112", 66)]
    assert "somebody else" in capfd.readouterr().err


def test_what_was_left_out_at_opening_is_reported():
    nan, flat, inverted, outside = (
        (0, 0, np.nan, 1), (0.5, 0, 0.5, 1), (0, 0.8, 1, 0.2), (0, 0, 1.2, 1)
    )  # fmt: skip
    bad = [("cat", box) for box in (nan, flat, inverted, outside)]
    source = clean_set_with([*bad, ("wolf", BOX)])
    diagnosis = examine(source)
    assert diagnosis.counts == {"SSD131": 1, "SSD132": 1, "SSD133": 2, "SSD134": 1}
    assert {finding.severity for finding in diagnosis.findings} == {"error"}
    assert [finding.where for finding in diagnosis.findings] == [
        f"file 0, object {number}" for number in range(2, 7)
    ]


def clean_set_with(things):
    return with_first(encoded(), things=[("cat", BOX), *things])


@pytest.mark.parametrize(
    ("source", "options", "code", "words"),
    [
        (clean_set_with([("cat", BOX)]), {}, "SSD176", "appears twice, for the same class"),
        (clean_set_with([("dog", BOX)]), {}, "SSD176", "appears twice, for another class"),
        (with_first(JPEG, things=()), {}, "SSD178", "1 of 2 images have no object, first file 0"),
        (with_first(JPEG, classes=("cat", "dog", "ox")), {}, "SSD179", "no object of this class"),
        (with_first(JPEG, names=("Ä", "a\u0308")), {}, "SSD175", "only in case or Unicode form"),
        (clean_set_with([("cat", (0, 0, 1, 0.005))]), {}, "SSD181", "file 0, object 2 (cat)"),
        (with_first(JPEG), {"label_width": 11}, "SSD183", "2 objects need a label width of 12"),
        (clean_set(), {"anchors": np.array([(0, 0, 1, 0.4)])}, "SSD182", "100% of the objects"),
    ],
)
def test_oddities_of_a_set(source, options, code, words):
    (finding,) = examine(source, **options).findings
    assert finding.code == code
    assert words in finding.message
    assert finding.severity == ("error" if code == "SSD183" else "warning")


def test_classes_that_look_alike():
    source = make(
        (JPEG, ("Red cell", BOX), ("redcell", (0, 0, 1, 1))), classes=("Red cell", "redcell")
    )
    assert examine(source).counts == {"SSD180": 1}


def test_limits_that_suffice():
    options = {"label_width": 12, "anchors": np.array([BOX, CORNER])}
    assert examine(with_first(JPEG), **options).findings == ()


def test_images_beyond_a_limit_can_be_used_all_the_same():
    source = with_first(JPEG)
    diagnosis = examine(source, label_width=9)
    assert diagnosis.counts == {"SSD183": 1}
    assert diagnosis.usable(source).tolist() == [0, 1]


def test_copies_and_leaks():
    source = make(
        (JPEG, ("cat", BOX)), (encoded(), ("dog", BOX)), (JPEG, ("cat", BOX)), (JPEG, ("dog", BOX))
    )
    diagnosis = examine(source, other=[make((PNG, ("cat", BOX))), make((b"",), (JPEG,))])
    found = [(each.code, each.image, each.severity) for each in diagnosis.findings]
    assert found == [
        ("SSD174", 2, "warning"),
        ("SSD174", 3, "warning"),
        *[("SSD177", image, "error") for image in (0, 2, 3)],
    ]
    assert "file 0, with the same objects" in diagnosis.findings[0].message
    assert "OTHER objects" in diagnosis.findings[1].message
    assert "file 1 of the other set" in diagnosis.findings[2].message
    assert diagnosis.usable(source).tolist() == [1]


def test_missing_images_are_no_copies_of_each_other():
    assert examine(make((None, ("cat", BOX)), (None, ("dog", BOX)))).counts == {"SSD111": 2}


def test_a_cleaned_set_has_no_findings_and_keeps_the_rest():
    source = make(
        (JPEG[:-20], ("cat", BOX)),
        (JPEG, ("cat", BOX), ("cat", BOX), ("dog", (0, 0, 1, 1))),
        (JPEG, ("dog", (0, 0, 1, 1)), ("cat", BOX)),
        (PNG, ("dog", BOX), ("cat", (0.5, 0.5, 0.5, 1))),
    )
    diagnosis = examine(source)
    assert diagnosis.counts == {"SSD112": 1, "SSD133": 1, "SSD174": 1, "SSD176": 1}
    cleaned = clean(source, diagnosis)
    assert list(cleaned.names) == ["1", "3"]
    assert cleaned[0].labels.tolist() == [0, 1]
    np.testing.assert_array_equal(cleaned[0].boxes, np.array([BOX, (0, 0, 1, 1)], np.float32))
    assert cleaned[1].image == PNG


def test_best_iou_is_that_of_the_definition(monkeypatch):
    def iou(one, two):
        width = min(one[2], two[2]) - max(one[0], two[0])
        height = min(one[3], two[3]) - max(one[1], two[1])
        shared = max(width, 0) * max(height, 0)
        area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
        return shared / (sum(area) - shared)

    corners = np.random.default_rng(1).random((12, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    source = make((JPEG, *(("cat", box) for box in boxes[:5])))
    reach = best_ious(source.annotations, boxes[5:])
    expected = [max(iou(box, anchor) for anchor in boxes[5:]) for box in boxes[:5]]
    np.testing.assert_allclose(reach.best, expected, rtol=1e-5)
    assert reach.unreached == np.mean(np.array(expected) < 0.5)
    monkeypatch.setattr(findings, "MEASURED_OBJECTS", 3)
    assert best_ious(source.annotations, boxes[5:]).objects.tolist() == [0, 2, 4]


# ---- before training ----


def test_skip_leaves_unusable_images_out_and_remembers_it(tmp_path):
    source = with_first(JPEG[:-20])
    usable, diagnosis = check_before_training(source, tmp_path)
    assert (usable.tolist(), source.problems.counts) == ([1], {"SSD112": 1})
    again = with_first(JPEG[:-20])
    again.read_image = None
    assert check_before_training(again, tmp_path)[1] == diagnosis
    assert again.problems.counts == {"SSD112": 1}
    assert str(again.problems.found[0]) == str(source.problems.found[0])


def test_error_stops_with_the_first_findings(tmp_path):
    source = make((b"",), (b"",), problems=Problems(advice="Leave out"))
    found = r"(?s)found 2 errors.*SSD112 file 0: .*SSD112 file 1.*\nLeave out$"
    with pytest.raises(UserError, match=found):
        check_before_training(source, tmp_path)
    usable, _ = check_before_training(with_first(JPEG, problems=Problems()), tmp_path)
    assert usable.tolist() == [0, 1]


def test_changed_files_are_examined_again(tmp_path):
    folder = voc(tmp_path / "set", {"a": annotation(thing())})
    container = tmp_path / "container"
    container.write_bytes(b"1")

    def counts():
        source = open_voc(folder, "all", problems=Problems("skip"))
        source.files = (str(container),)
        return check_before_training(source, tmp_path)[1].counts

    assert counts() == {}
    image = folder / "JPEGImages/a.jpg"
    image.write_bytes(image.read_bytes()[:-20])
    assert counts() == {"SSD112": 1}
    assert len(list(tmp_path.glob("doctor-*.json"))) == 2
    container.write_bytes(b"12")
    counts()
    caches = list(tmp_path.glob("doctor-*.json"))
    assert len(caches) == 3
    for cache in caches:
        cache.write_text("{")
    assert counts() == {"SSD112": 1}
    with (folder / "ImageSets/Main/all.txt").open("a") as listed:
        listed.write("lost\n")
    assert counts() == {"SSD112": 1, "SSD121": 1}
    assert not list(tmp_path.glob(".*"))


def test_a_changed_record_file_is_examined_again(tmp_path):
    convert(clean_set(), tmp_path / "a.rec")
    path = tmp_path / "a.rec"

    def counts():
        source = open_recordio(path, problems=Problems("skip"))
        return check_before_training(source, tmp_path)[1].counts

    assert counts() == {}
    path.write_bytes(path.read_bytes().replace(b"\xff\xd8", b"\0\0"))
    assert counts() == {"SSD112": 2}


def test_images_behind_a_url_are_looked_at_each_time(tmp_path):
    far = {"place": "s3://bucket/file"}
    assert check_before_training(with_first(JPEG, **far), tmp_path)[1].counts == {}
    assert check_before_training(with_first(JPEG[:-20], **far), tmp_path)[1].counts == {"SSD112": 1}
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_used_is_no_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert check_before_training(with_first(JPEG), tmp_path / "file")[1].findings == ()


def test_names_that_are_no_utf_8(tmp_path):
    words = {"names": ("\udcff", "b"), "place": "\udcff"}
    found = check_before_training(with_first(JPEG[:-20], **words), tmp_path)[1]
    again = with_first(JPEG[:-20], **words)
    again.read_image = None
    assert check_before_training(again, tmp_path)[1] == found
    assert found.findings[0].where == "\udcff 0"


def test_records_without_an_entry_in_the_index(tmp_path):
    convert(clean_set(), tmp_path / "a.rec")
    index = tmp_path / "a.idx"
    index.write_text(index.read_text().splitlines(keepends=True)[0])
    (finding,) = examine(open_recordio(tmp_path / "a.rec")).findings
    assert (finding.code, finding.where, finding.image) == ("SSD146", str(index), None)
    assert finding.severity == "warning"
