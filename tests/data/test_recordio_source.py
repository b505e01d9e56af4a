"""RecordIO files: the framing, what a label may look like, and what is refused."""

import itertools
import os
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.data.sources import recordio_file
from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.recordio import mixed_object_widths, not_indexed, open_recordio
from ssd_jax.data.sources.recordio_file import RecordFile, frame
from ssd_jax.errors import DataError

MAGIC = bytes.fromhex("0a23d7ce")
OBJECT = (2, 0.25, 0.5, 0.75, 1)
# Payloads out of the magic number, whole and in pieces, at any distance from the start.
pieces = st.sampled_from([MAGIC, MAGIC[:2], MAGIC[2:], MAGIC[::-1]]) | st.binary(max_size=5)
payloads = st.lists(pieces, max_size=8).map(b"".join)
few = settings(max_examples=60, deadline=None)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "recordio"


def payload(*numbers, image=b"image", record_id=0, length=None):
    """An IRHeader, float32 numbers and an image; `length` is a lie about how many numbers."""
    count = len(numbers) if length is None else length
    header = struct.pack("<IfQQ", count, 0, record_id, 0)
    return header + np.array(numbers, "<f4").tobytes() + image


def write(folder, *records, index=None):
    """A `.rec` file, and a `.idx` with the keys given."""
    frames = [frame(record) for record in records]
    path = folder / "a.rec"
    path.write_bytes(b"".join(frames))
    if index is not None:
        offsets = np.cumsum([0, *map(len, frames)])
        lines = [f"{key}\t{offset}\n" for key, offset in zip(index, offsets, strict=False)]
        (folder / "a.idx").write_text("".join(lines))
    return path


def one(folder, *numbers, **options):
    """The example of a file of one record, whose label has these numbers."""
    return open_recordio(write(folder, payload(*numbers)), **options)[0]


# ---- the framing ----


def test_a_record_without_the_magic_number_is_one_part():
    assert frame(b"abcde") == MAGIC + struct.pack("<I", 5) + b"abcde\0\0\0"
    assert frame(b"") == MAGIC + struct.pack("<I", 0)


def test_the_magic_number_ends_a_part_where_it_is_aligned():
    parts = [(1, b"abcd"), (2, b""), (3, b"x" + MAGIC)]
    head = [MAGIC + struct.pack("<I", flag << 29 | len(data)) + data for flag, data in parts]
    assert frame(b"abcd" + MAGIC + MAGIC + b"x" + MAGIC) == b"".join(head) + bytes(3)


@few
@given(records=st.lists(payloads, min_size=1, max_size=4))
def test_what_is_framed_is_read_again(tmp_path_factory, records):
    path = write(tmp_path_factory.mktemp("rec"), *records)
    words = np.frombuffer(path.read_bytes(), "<u4").tolist()
    flags = [after >> 29 for word, after in itertools.pairwise(words) if word == 0xCED7230A]
    assert sum(flag in (0, 1) for flag in flags) == len(records)  # no magic number inside the data
    file = RecordFile(path)
    offsets = file.find_records(pytest.fail).tolist()
    assert [file.payload(offset) for offset in offsets] == records


def test_files_of_more_than_4_gigabytes(tmp_path, monkeypatch):
    hole, last = 2**29 - 40, payload(2, 5, *OBJECT, image=b"far away", record_id=9)
    path = tmp_path / "a.rec"
    with path.open("wb") as file:
        for record_id in range(9):
            file.write(MAGIC + struct.pack("<I", hole))
            file.write(payload(2, 5, -1, 0, 0, 0, 0, image=b"", record_id=record_id))
            file.seek((record_id + 1) * (hole + 8))
        file.write(frame(last))
    assert path.stat().st_size > 2**32
    source = open_recordio(path)
    assert (len(source), source.names[9], source[9].image) == (10, "9", b"far away")


# ---- labels ----


def test_objects_of_five_and_of_six_numbers(tmp_path):
    example = one(tmp_path, 2, 5, *OBJECT, 0, 0, 0, 1, 1)
    assert (example.labels.tolist(), example.difficult.tolist()) == ([2, 0], [False, False])
    np.testing.assert_array_equal(example.boxes, [OBJECT[1:], (0, 0, 1, 1)])
    assert (example.image, example.size) == (b"image", None)
    example = one(tmp_path, 2, 6, *OBJECT, 1, 0, 0, 0, 1, 1, 0)
    assert (example.labels.tolist(), example.difficult.tolist()) == ([2, 0], [True, False])
    example = one(tmp_path, 3, 8, 99, *OBJECT, 1, 7, 7)
    np.testing.assert_array_equal(example.boxes, [OBJECT[1:]])


def test_a_header_of_four_numbers_has_the_size(tmp_path):
    assert one(tmp_path, 4, 5, 500, 375, *OBJECT).size == (375, 500)
    assert one(tmp_path, 4, 5, 0, 375, *OBJECT).size is None
    assert one(tmp_path, 5, 5, 500, 375, 3, *OBJECT).size is None


def test_the_size_before_im2rec_resized_is_not_that_of_the_image(tmp_path):
    jpeg = cv2.imencode(".jpg", np.zeros((75, 100, 3), np.uint8))[1].tobytes()
    scaled = payload(4, 5, 500, 375, *OBJECT, image=jpeg)
    another = payload(4, 5, 800, 300, *OBJECT, image=jpeg)
    sizes = [open_recordio(write(tmp_path, record))[0].size for record in (scaled, another)]
    assert sizes == [None, (300, 800)]
    # One image of another size is a mistake of its own.
    one_off = payload(4, 5, 100, 76, *OBJECT, image=jpeg)
    assert open_recordio(write(tmp_path, one_off))[0].size == (76, 100)


@pytest.mark.parametrize(
    "label",
    [
        (2, 5),
        (2, 0),
        (4, 5, 500, 375),
        (7, 5, 1, 2, 3, 4, 5),
        (2, 5, -1, -1, -1, -1, -1),
        (2, 5, 0, 0, 0, 0, 0),
        (2, 6, -1, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0, 0),
    ],
)
def test_images_without_objects(tmp_path, label):
    path = write(tmp_path, payload(*label), payload(2, 5, *OBJECT))
    assert open_recordio(path).object_counts.tolist() == [0, 1]


def test_class_names_are_numbers_unless_given(tmp_path):
    path = write(tmp_path, payload(2, 5, *OBJECT))
    assert open_recordio(path).classes == ("0", "1", "2")
    assert open_recordio(path, classes=("a", "b", "c", "d")).classes == ("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"SSD134 .*a\.rec, record 0, object 1.*'2'.*one of a, b"):
        open_recordio(path, classes=("a", "b"))


@pytest.mark.parametrize("class_id", [0.5, -2, np.nan, np.inf, 1e6, 3e38])
def test_a_class_id_is_a_whole_number(tmp_path, class_id):
    with pytest.raises(DataError, match="SSD134"):
        one(tmp_path, 2, 5, class_id, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("record", "code", "parts"),
    [
        (payload(), "SSD144", ["1 number", "classification", "--pack-label"]),
        (payload(1), "SSD144", ["1 number", "classification"]),
        (payload(2, 5, *OBJECT[:4]), "SSD144", ["6 numbers that begins with 2, 5", "A >= 2"]),
        (payload(1, 5, *OBJECT), "SSD144", ["begins with 1, 5"]),
        (payload(2.5, 5, *OBJECT), "SSD144", ["begins with 2.5, 5"]),
        (payload(2, 4, *OBJECT[:4]), "SSD144", ["begins with 2, 4"]),
        (payload(9, 5, *OBJECT), "SSD144", ["begins with 9, 5"]),
        (payload(np.nan, np.inf, *OBJECT), "SSD144", ["begins with nan, inf"]),
        (payload(2, 5, *OBJECT, length=99, image=b""), "SSD144", ["52 bytes", "99 numbers"]),
        (payload(2, 5, length=2**32 - 1), "SSD144", ["4,294,967,295 numbers"]),
        (b"", "SSD144", ["0 bytes", "24 for the header"]),
        (b"short" + MAGIC, "SSD144", ["9 bytes"]),
        (payload(2, 5, 1, 0.5, 0, 0.5, 1), "SSD133", ["object 1", "(0.5, 0, 0.5, 1)"]),
        (payload(2, 5, 1, 0, 0, 0, 0), "SSD133", ["object 1"]),
        (payload(2, 5, -1, 0, 0, 1, 1), "SSD134", ["'-1'"]),
        (payload(2, 5, 1, 0, 0, 1, 1.01), "SSD132", ["0.01 of the image side outside"]),
        (payload(2, 5, 1, 0, 0, 1, np.nan), "SSD131", ["(0, 0, 1, nan)"]),
    ],
)
def test_bad_records_are_named_or_left_out(tmp_path, record, code, parts):
    path = write(tmp_path, payload(2, 5, *OBJECT), record, index=("8", "9"))
    with pytest.raises(DataError) as error:
        open_recordio(path)
    for part in [code, "a.rec, record 1 (key 9)", *parts]:
        assert part in str(error.value)
    source = open_recordio(path, problems=Problems("skip"))
    assert source.problems.counts[code] == 1
    assert source.object_counts.tolist()[0] == 1


def test_every_bit_pattern_is_a_number(tmp_path):
    signalling = struct.pack("<I", 0x7F800001)  # a NaN that floating point units complain of
    record = payload(2, 5, *OBJECT)
    for word in range(7):
        at = 24 + 4 * word
        write(tmp_path, record[:at] + signalling + record[at + 4 :])
        with pytest.raises(DataError):
            open_recordio(tmp_path / "a.rec")


def test_the_width_of_labels_is_measured(tmp_path):
    path = write(tmp_path, payload(2, 5, *OBJECT), payload(2, 5, *OBJECT, *OBJECT))
    assert len(open_recordio(path, label_width=12)) == 2
    with pytest.raises(DataError, match=r"SSD183 .*record 1.* 12 numbers.*Set label_width to 12"):
        open_recordio(path, label_width=11, problems=Problems("skip"))


def test_mixed_object_widths_are_a_finding(tmp_path):
    five, six = payload(2, 5, *OBJECT), payload(2, 6, *OBJECT, 1)
    path = write(tmp_path, five, payload(2, 9), five, six)
    assert open_recordio(path).object_counts.tolist() == [1, 0, 1, 1]
    found = mixed_object_widths(path)
    assert str(found).startswith(f"SSD145 {path}, record 3: objects have different widths (5 in 2")
    assert mixed_object_widths(write(tmp_path, five, payload(2, 6), five)) is None


# ---- the index ----


def test_the_index_has_the_order_and_the_names(tmp_path):
    path = write(tmp_path, *(payload(2, 5, *OBJECT, image=bytes([i])) for i in range(3)))
    size = path.stat().st_size // 3
    (tmp_path / "a.idx").write_text(f"30\t{2 * size}\n7\t0\n")
    source = open_recordio(path)
    assert (source.names, [e.image for e in source]) == (["30", "7"], [b"\2", b"\0"])


def test_records_that_the_index_leaves_out_are_a_finding(tmp_path):
    records = [payload(2, 5, *OBJECT)] * 3
    path = write(tmp_path, *records, index="ab")
    source = open_recordio(path)
    assert (len(source), source.files) == (2, (str(path), str(tmp_path / "a.idx")))
    size = path.stat().st_size // 3
    assert str(not_indexed(*source.files)).startswith(
        f"SSD146 {tmp_path / 'a.idx'}: 1 of the 3 records of {path} are missing, the first at "
        f"byte {2 * size}, expected all"
    )
    write(tmp_path, *records, index="abc")
    assert not_indexed(*source.files) is None
    path.write_bytes(b"damaged!")
    assert not_indexed(*source.files) is None  # what is damaged is told elsewhere


def test_without_an_index_ids_are_names_if_they_can_be(tmp_path):
    def names(*ids):
        records = [payload(2, 5, *OBJECT, record_id=record_id) for record_id in ids]
        return open_recordio(write(tmp_path, *records)).names

    assert names(5, 2**64 - 1) == ["5", str(2**64 - 1)]
    assert names(5, 5) == ["0", "1"]


def test_offsets_are_kept_until_the_file_changes(tmp_path, cache, monkeypatch):
    path = write(tmp_path, payload(2, 5, *OBJECT), payload(2, 5, *OBJECT))
    searches = []
    search = RecordFile.find_records
    monkeypatch.setattr(RecordFile, "find_records", lambda *a: searches.append(a) or search(*a))
    first, second = open_recordio(path), open_recordio(path)
    assert (first.fingerprint, len(searches)) == (second.fingerprint, 1)
    (kept,) = cache.iterdir()
    kept.write_bytes(b"no array")
    assert open_recordio(path).fingerprint == first.fingerprint
    os.utime(path, ns=(1, 1))
    open_recordio(path)
    assert len(searches) == 3


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache):
    cache.parent.write_text("a file, no folder")
    assert len(open_recordio(write(tmp_path, payload(2, 5, *OBJECT)))) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("7\tzero\n", r"line 1 is '7\\tzero'"),
        ("7 0\n", "line 1 is '7 0'"),
        ("7\t99999999999999999999\n", "line 1"),
        ("7\t0\n" * 999, r"3,996 bytes for a \.rec file of 60 bytes"),
        ("é", "not a text file"),
        ("7\t4\n", "no record begins at byte 4"),
        ("7\t2\n", "no record begins at byte 2"),
        ("7\t-60\n", "no record begins at byte -60"),
        ("7\t56\n", "no record begins at byte 56"),
        ("7\t4000\n", "no record begins at byte 4,000"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, text, problem):
    path = write(tmp_path, payload(2, 5, *OBJECT, image=b""))
    (tmp_path / "a.idx").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"SSD143 .*{problem}.*Remove"):
        open_recordio(path)


def test_no_bytes_belong_to_two_records(tmp_path):
    inner = frame(payload(2, 5, *OBJECT))
    outer = struct.pack("<4sI", MAGIC, 52 + len(inner)) + payload(2, 5, *OBJECT, image=inner)
    path = tmp_path / "a.rec"
    path.write_bytes(outer)
    for second, code in (("1\t0", "SSD142"), ("1\t60", "SSD142"), ("0\t60", "SSD104")):
        (tmp_path / "a.idx").write_text(f"0\t0\n{second}\n")
        with pytest.raises(DataError, match=f"{code} .*key"):
            open_recordio(path)


# ---- damage ----


def test_damage_is_named_and_the_rest_is_read(tmp_path):
    records = [frame(payload(2, 5, *OBJECT, image=bytes([65 + i]) * 40)) for i in range(4)]
    records[1] = bytes(8) + records[1][8:]
    path = tmp_path / "a.rec"
    path.write_bytes(b"".join(records)[:-20])
    with pytest.raises(DataError, match=r"SSD142 .*a\.rec, byte \d+: .*Copy"):
        open_recordio(path)
    for _ in range(2):  # damage is told again, it is not kept in the cache
        source = open_recordio(path, problems=Problems("skip"))
        assert [image[:1] for image in map(source.read_image, range(len(source)))] == [b"A", b"C"]
        assert source.problems.counts == {"SSD142": 2}


@pytest.mark.parametrize(
    "data",
    [
        b"no RecordIO file at all",
        b"\x1f\x8b" + bytes(100),
        MAGIC,
        MAGIC + b"\5\0\0",
        frame(b"abcd" + MAGIC)[8:],  # begins with the second part
        frame(b"abcd" + MAGIC)[:12],  # ends after the first
        MAGIC + struct.pack("<I", 7 << 29),
    ],
)
def test_what_is_no_record_file_is_refused_whatever_the_policy(tmp_path, data):
    path = tmp_path / "a.rec"
    path.write_bytes(data)
    with pytest.raises(DataError, match="SSD142"):
        open_recordio(path, problems=Problems("skip"))


def test_endless_damage_is_not_gone_through(tmp_path, monkeypatch):
    monkeypatch.setattr(recordio_file, "MAX_DAMAGED", 3)
    broken = MAGIC + struct.pack("<I", 7 << 29) + MAGIC + struct.pack("<I", 1 << 29)
    path = tmp_path / "a.rec"
    path.write_bytes(frame(payload(2, 5, *OBJECT)) + broken * 9)
    problems = Problems("skip")
    with pytest.raises(DataError, match="SSD142"):
        open_recordio(path, problems=problems)
    assert len(problems.found) == 3


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"SSD141 .*b\.rec: .*No such file"):
        open_recordio(tmp_path / "b.rec")
    with pytest.raises(DataError, match=r"SSD141 .*not a regular file"):
        open_recordio(tmp_path)
    os.mkfifo(tmp_path / "pipe.rec")
    with pytest.raises(DataError, match=r"SSD141 .*not a regular file"):
        open_recordio(tmp_path / "pipe.rec")
    with pytest.raises(DataError, match="SSD103"):
        open_recordio(write(tmp_path))


def test_a_file_that_became_shorter_is_told(tmp_path):
    path = write(tmp_path, payload(2, 5, *OBJECT))
    source = open_recordio(path)
    os.truncate(path, 50)
    with pytest.raises(DataError, match=r"SSD142 .*has been truncated"):
        source[0]
