"""Sources as RecordIO: what is written, byte for byte, and that it comes back."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.data.sources.base import Problems, source_of_objects
from ssd_jax.data.sources.recordio import open_recordio
from ssd_jax.data.sources.recordio_file import frame
from ssd_jax.data.sources.recordio_writer import write_recordio
from ssd_jax.errors import DataError, UserError

MAGIC = bytes.fromhex("0a23d7ce")
THING = (2, (0.25, 0.5, 0.75, 1), True)  # class id, box, difficult


def payload(*numbers, image, record_id=0):
    header = struct.pack("<IfQQ", len(numbers), 0, record_id, 0)
    return header + np.array(numbers, "<f4").tobytes() + image


def source_of(images, *, names=None, sizes=None, classes=("a", "b", "c")):
    """A source of images given as (bytes, [(class id, box, difficult), ...])."""
    objects = [thing for _, things in images for thing in things]
    boxes = np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4).astype(np.float64)
    return source_of_objects(
        names=names or [f"image {i}" for i in range(len(images))],
        sizes=np.zeros((len(images), 2), np.int32) if sizes is None else np.array(sizes),
        object_counts=np.array([len(things) for _, things in images], np.int64),
        written=boxes,
        boxes=boxes,
        labels=np.array([label for label, _, _ in objects], np.int64),
        difficult=np.array([flag for _, _, flag in objects], bool),
        classes=classes,
        read_image=lambda i: images[i][0],
        locate=lambda i: f"file {i}",
        problems=Problems(),
        locate_object=lambda i, number: f"file {i}, object {number}",
        label_text=str,
    )


# Images out of the magic number, whole and in pieces, at any distance from the start.
pieces = st.sampled_from([MAGIC, MAGIC[:2], MAGIC[2:], MAGIC[::-1]]) | st.binary(max_size=5)
payloads = st.lists(pieces, max_size=8).map(b"".join)
low, high = st.floats(0, 0.5, width=32), st.floats(0.625, 1, width=32)
boxes = st.tuples(low, low, high, high)
things = st.tuples(st.integers(0, 2), boxes, st.booleans())
pictures = st.lists(st.tuples(payloads, st.lists(things, max_size=3)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(images=pictures, sized=st.booleans(), indexed=st.booleans())
def test_what_is_written_is_read_again(tmp_path_factory, images, sized, indexed):
    sizes = [(3 + i, 5) for i in range(len(images))] if sized else None
    source = source_of(images, sizes=sizes)
    path = tmp_path_factory.mktemp("rec") / "a.rec"
    write_recordio(path, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_JAX_CACHE", str(path.parent / "cache"))
        if not indexed:
            path.with_suffix(".idx").unlink()
        again = open_recordio(path, classes=source.classes)
    assert again.names == [str(i) for i in range(len(images))]
    for ours, theirs in zip(again, source, strict=True):
        for field in ("image", "size", "boxes", "labels", "difficult"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))


def test_the_files_are_those_of_im2rec(tmp_path):
    images = [(b"one", [THING]), (b"none", [])]
    write_recordio(tmp_path / "a.rec", source_of(images, names=["7", "30"]))
    first = payload(2, 6, 2, 0.25, 0.5, 0.75, 1, 1, image=b"one", record_id=7)
    second = payload(2, 6, -1, 0, 0, 0, 0, 0, image=b"none", record_id=30)
    assert (tmp_path / "a.rec").read_bytes() == frame(first) + frame(second)
    assert (tmp_path / "a.idx").read_text() == f"7\t0\n30\t{len(frame(first))}\n"
    assert (tmp_path / "a.lst").read_text() == (
        "7\t2.0\t6.0\t2.0\t0.25\t0.5\t0.75\t1.0\t1.0\t7\n"
        "30\t2.0\t6.0\t-1.0\t0.0\t0.0\t0.0\t0.0\t0.0\t30\n"
    )


def test_sizes_that_are_known_stand_in_the_header(tmp_path):
    write_recordio(tmp_path / "a.rec", source_of([(b"", [THING])], sizes=[(3, 5)]))
    label = payload(4, 6, 5, 3, 2, 0.25, 0.5, 0.75, 1, 1, image=b"")
    assert (tmp_path / "a.rec").read_bytes() == frame(label)


def test_images_may_be_read_elsewhere(tmp_path):
    write_recordio(tmp_path / "a.rec", source_of([(b"not this", [])]), images=[b"this"])
    assert open_recordio(tmp_path / "a.rec", classes=("a",))[0].image == b"this"


def test_half_a_file_is_never_there(tmp_path):
    def cut():
        yield b"one"
        raise RuntimeError("cut")

    path = tmp_path / "a.rec"
    whole = source_of([(b"one", []), (b"two", [])])
    with pytest.raises(RuntimeError, match="cut"):
        write_recordio(path, whole, images=cut())
    assert list(tmp_path.iterdir()) == []
    write_recordio(path, whole)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(RuntimeError, match="cut"):
        write_recordio(path, whole, images=cut())
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_impossible_writes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"a\.record: expected a name that ends in \.rec"):
        write_recordio(tmp_path / "a.record", source_of([(b"", [])]))
    monkeypatch.setattr("ssd_jax.data.sources.recordio_writer.MAX_PAYLOAD", 60)
    with pytest.raises(DataError, match=r"SSD113 file 0: .* 61 bytes, expected at most 60"):
        write_recordio(tmp_path / "a.rec", source_of([(b"x" * 5, [])]))
