"""The size of an image as decoders give it, from its first bytes."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from ssd_jax.data.sources.image_header import image_size, image_suffix
from ssd_jax.errors import DataError

JPEG, PNG = (
    cv2.imencode(suffix, np.zeros((50, 100, 3), np.uint8))[1].tobytes()
    for suffix in (".jpg", ".png")
)


def with_orientation(number):
    tiff = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, number, 0) + bytes(4)
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 8 + len(tiff)) + b"Exif\0\0" + tiff + JPEG[2:]


@pytest.mark.parametrize("data", [JPEG, PNG, *map(with_orientation, range(10))])
def test_the_size_is_that_of_the_decoded_image(data):
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image_size(data, "a") == decoded.shape[:2]


def test_the_suffix_follows_the_content():
    assert (image_suffix(JPEG, "a.png"), image_suffix(PNG, "a")) == (".jpg", ".png")


def test_damaged_exif_data_is_passed_over():
    assert image_size(with_orientation(6).replace(b"MM\0*", b"MM\xff\xff"), "a") == (50, 100)


@pytest.mark.parametrize("data", [b"", b"GIF89a", JPEG[:9], PNG[:20]])
def test_other_files_are_refused(data):
    with pytest.raises(DataError, match=f"SSD112 here: {len(data)} bytes that start with"):
        image_size(data, "here")


def test_a_claim_of_gigabytes_is_refused():
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(DataError, match="SSD113 here: too many pixels"):
        image_size(PNG[:8] + chunk + PNG[33:], "here")
