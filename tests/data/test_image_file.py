"""Size and orientation of an image as decoders see them, from its first bytes."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.data.sources.image_file import (
    exif_orientation,
    image_size,
    image_suffix,
    read_header,
)
from ssd_jax.errors import DataError

JPEG, PNG = (
    cv2.imencode(suffix, np.zeros((50, 100, 3), np.uint8))[1].tobytes()
    for suffix in (".jpg", ".png")
)


def with_segment(content):
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(content)) + content + JPEG[2:]


def with_chunk(content, at=33):
    chunk = b"eXIf" + content
    return PNG[:at] + struct.pack(">I", len(content)) + chunk + crc(chunk) + PNG[at:]


def crc(chunk):
    return struct.pack(">I", zlib.crc32(chunk))


def orientation(number, order=">", kind=3):
    """The least EXIF data: a directory of one short, or of another kind (4 is a long)."""
    mark = {">": b"MM\0*", "<": b"II*\0"}[order]
    value = struct.pack(f"{order}I", number) if kind == 4 else struct.pack(f"{order}HH", number, 0)
    entry = struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value
    return mark + entry + bytes(4)


def turned(number, order=">", kind=3):
    return with_segment(b"Exif\0\0" + orientation(number, order, kind))


def behind_garbage(content):
    return content[:2] + b"\xff\x00garbage" + content[2:]


def behind(content):
    """An image with more than 64 KiB of another program's data before its orientation."""
    other = b"\xff\xed" + struct.pack(">H", 60_002) + bytes(60_000)
    return content[:2] + other * 2 + content[2:]


XMP = (
    b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation='6'/></x:xmpmeta>"
)


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        PNG,
        *map(turned, range(10)),
        turned(6, "<"),
        turned(6, ">", kind=4),
        turned(6, "<", kind=4),
        behind(turned(6)),
        behind_garbage(turned(6)),
        with_chunk(orientation(6)),
        with_chunk(orientation(6), at=len(PNG) - 12),
        with_segment(XMP),
    ],
)
def test_the_size_is_that_of_the_decoded_image(data):
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image_size(data, "a") == decoded.shape[:2]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("number", [1, 3, 6, 8, 9])
def test_the_orientation_is_told_as_it_stands_there(number, order):
    assert exif_orientation(turned(number, order)) == number


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_have_an_orientation(data):
    for start in (b"II*\0", b"MM\0*"):
        assert exif_orientation(with_segment(b"Exif\0\0" + start + data)) >= 0
    assert exif_orientation(data) == 1


def test_the_suffix_follows_the_content():
    assert (image_suffix(JPEG, "a.png"), image_suffix(PNG, "a")) == (".jpg", ".png")


def test_damaged_exif_data_is_passed_over():
    assert image_size(turned(6).replace(b"MM\0*", b"MM\xff\xff"), "a") == (50, 100)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "0 bytes that start with"),
        (b"GIF89a", "6 bytes that start with"),
        (JPEG[:9], r"a JPEG header without an image \(9 bytes\)"),
        (PNG[:20], "20 bytes that start with"),
        (PNG[:16] + bytes(4) + PNG[20:], "0 x 50 pixels, expected a whole"),
    ],
)
def test_other_files_are_refused(data, problem):
    with pytest.raises(DataError, match=f"SSD112 here: {problem}"):
        image_size(data, "here")


def test_a_claim_of_gigabytes_is_refused():
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + crc(header)
    with pytest.raises(DataError, match="SSD113 here: 60000 x 60000 pixels, expected at most"):
        image_size(PNG[:8] + chunk + PNG[33:], "here")


def progressive(scans, comment=b""):
    """An image of which the last scan is repeated."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    data = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8), options)[1].tobytes()
    start = data.rindex(b"\xff\xda")
    more = b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment if comment else b""
    return data[:start] + more + data[start:-2] * scans + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded():
    """Each takes as long as the first, so that a small file would take hours."""
    assert read_header(progressive(3) + progressive(200), "it").complete  # behind its end
    for comment in (b"", b"\xff\xd9"):  # which is no end of the image
        with pytest.raises(DataError, match="a JPEG of more than 100 scans"):
            read_header(progressive(200, comment), "it")


def test_fill_bytes_and_empty_segments_take_no_time():
    assert image_size(JPEG[:2] + b"\xff" * 10**7 + JPEG[2:], "it") == (50, 100)
    with pytest.raises(DataError, match="a JPEG header without an image"):
        image_size(JPEG[:2] + b"\xff\xe0\0\2" * 10**6 + JPEG[2:], "it")


def test_a_png_has_no_more_data_than_its_pixels():
    chunk = b"IDAT" + bytes(200_000)
    large = PNG[:33] + struct.pack(">I", 200_000) + chunk + crc(chunk) + PNG[33:]
    with pytest.raises(DataError, match="bytes of data for 100 x 50 pixels"):
        read_header(large, "it")
    noise = np.random.default_rng(0).integers(0, 2**16, (30, 1, 4), np.uint16)
    plain = cv2.imencode(".png", noise, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    assert read_header(plain, "it").size == (30, 1)
