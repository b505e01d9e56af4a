"""An image file before it is decoded: its bytes, its type, its size, its orientation."""

import pathlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ssd_jax.data import codes
from ssd_jax.errors import DataError

_EXIF_ORIENTATION = 0x0112
# The size of a value by its EXIF type; a short is legal, but signed and long values occur too.
_EXIF_BYTES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}
_TURNED = (5, 6, 7, 8)
# So many images tell whether the set was scaled.
PROBED = 20
# The largest image side that an annotation may give.
MAX_PIXELS_OF_A_SIDE = 2**24
# Checked before memory is allocated: a file of a few kilobytes can claim to hold gigabytes.
MAX_PIXELS = 2**27
# Far more than any camera or program writes; a small file with many more takes hours to decode.
MOST_SCANS, MOST_SEGMENTS = 100, 10_000
# Compressed data of a PNG may be larger than its pixels by the parts of zlib, but not much.
_PNG_SLACK = 2**16
# FF 00, FF 01 and the restart markers (D0 to D7) begin no segment. Like libjpeg, this skips
# everything in front of a marker: any number of FF, and what does not belong there.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_PNG = b"\x89PNG\r\n\x1a\n"
_FIRST_BYTES = {b"\xff\xd8\xff": ".jpg", _PNG: ".png"}


class Header(NamedTuple):
    """The beginning of a file: its (height, width) as stored, before the EXIF orientation."""

    size: tuple[int, int]
    kind: str
    complete: bool  # whether the file has its end marker


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of an image that existed when the annotations were read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise image_missing(str(path), f"the image cannot be read ({error})") from error


def image_missing(where: str, problem: str) -> DataError:
    """The error for a missing image."""
    return DataError(codes.IMAGE_MISSING, where, problem, "Add the image, or remove its record")


def are_scaled(read_image: Callable[[int], bytes], sizes: Int[np.ndarray, "N 2"]) -> bool:
    """Whether most of the first images have the shape, but not the size, of their (height, width).

    Those of the same size do not count: where all are scaled to one side, they had it before.
    """
    scaled = []
    for index in np.flatnonzero(sizes[:, 0])[:PROBED].tolist():
        try:
            height, width = image_size(read_image(index), "")
        except DataError:
            continue
        old_height, old_width = sizes[index].tolist()
        if (height, width) != (old_height, old_width):
            # The sides were rounded to whole pixels.
            off = abs(height * old_width - width * old_height)
            same_shape = off <= max(old_height, old_width)
            scaled.append(same_shape and height != old_height and width != old_width)
    return sum(scaled) > len(scaled) / 2


def image_unreadable(where: str, problem: str) -> DataError:
    """The error for bytes that are not a complete image."""
    return DataError(
        codes.IMAGE_UNREADABLE,
        where,
        f"{problem}, expected a whole JPEG or PNG file",
        "Replace the file, or leave it out",
    )


def image_suffix(data: bytes, where: str) -> str:
    """`.jpg` or `.png`, by the content."""
    for start, suffix in _FIRST_BYTES.items():
        if data.startswith(start):
            return suffix
    raise _neither(data, where)


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) as decoded, with the EXIF orientation applied. No pixel is decoded."""
    size = read_header(data, where).size
    return size[::-1] if _orientation(data)[1] in _TURNED else size


def read_header(data: bytes, where: str, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of an image file; a `DataError` for more pixels than `max_pixels`."""
    read = _jpeg_header if data.startswith(b"\xff\xd8") else _png_header
    header = read(data, where)
    height, width = header.size
    if not height * width:
        raise image_unreadable(where, f"{width} x {height} pixels")
    if height * width > max_pixels:
        raise DataError(
            codes.IMAGE_TOO_LARGE,
            where,
            f"{width} x {height} pixels, expected at most {max_pixels:,}",
            "Scale the image down",
        )
    return header


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation as it is in a file, legal or not; 1 if there is none.

    The tag 0x0112 of the first directory (TIFF 6.0, section 2; CIPA DC-008, 4.6.4). Pillow's reader
    is not used because it also obeys XMP, which decoders do not, and warns about damage.
    """
    return _orientation(data)[0]


def _orientation(data: bytes) -> tuple[int, int]:
    """The orientation by its type, and as a short, which OpenCV takes every type for."""
    find = _exif_of_png if data.startswith(_PNG) else _exif_of_jpeg
    start = find(data)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(data[start : start + 4])
    if order is None:
        return 1, 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[start + at : start + at + size], order)

    directory = number(4, 4)
    end = min(directory + 2 + 12 * number(directory, 2), len(data) - start)
    for entry in range(directory + 2, end, 12):
        if number(entry, 2) == _EXIF_ORIENTATION:
            written = number(entry + 8, _EXIF_BYTES.get(number(entry + 2, 2), 2))
            return written, number(entry + 8, 2)
    return 1, 1


def _exif_of_jpeg(data: bytes) -> int:
    """Where the EXIF data begin; behind the end if there are none."""
    starts = (at + 6 for marker, at in _segments(data) if marker == 0xE1)
    return next((at for at in starts if data[at - 6 : at] == b"Exif\0\0"), len(data))


def _exif_of_png(data: bytes) -> int:
    return next((at for kind, at, _ in _chunks(data) if kind == b"eXIf"), len(data))


def _png_header(data: bytes, where: str) -> Header:
    if not data.startswith(_PNG) or len(data) < 24:
        raise _neither(data, where)
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    compressed = sum(size for kind, _, size in _chunks(data) if kind == b"IDAT")
    if compressed > 9 * height * width + _PNG_SLACK:  # a pixel has at most 8 bytes
        raise image_unreadable(where, f"{compressed:,} bytes of data for {width} x {height} pixels")
    return Header((height, width), "PNG", data.rfind(b"IEND") >= 0)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The type of each chunk of a PNG up to its end, where its content begins, and its size."""
    at, kind = len(_PNG), b""
    while at + 8 <= len(data) and kind != b"IEND":
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        yield kind, at + 8, size
        at += 12 + size


def _jpeg_header(data: bytes, where: str) -> Header:
    """The size in the frame header (ITU T.81, annex B)."""
    size = None
    for marker, at in _segments(data):
        if marker == 0xDA and size is not None:
            if _has_many_scans(data, at):
                raise image_unreadable(where, f"a JPEG of more than {MOST_SCANS} scans")
            # Inside a scan FF is always followed by 00 or a restart marker, so FF D9 is the end.
            return Header(size, "JPEG", data.rfind(b"\xff\xd9", at) >= 0)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 5 <= len(data):
            height, width = (int.from_bytes(data[i : i + 2], "big") for i in (at + 1, at + 3))
            size = (height, width)
    raise image_unreadable(where, f"a JPEG header without an image ({len(data):,} bytes)")


def _has_many_scans(data: bytes, at: int) -> bool:
    """Whether MOST_SCANS or more scans follow the one whose content begins at `at`."""
    scans = 0
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[0] == b"\xff\xd9":
            return False
        scans += found[0] == b"\xff\xda"
        if scans == MOST_SCANS:
            return True
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return True


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment of a JPEG up to the first scan, and where its content begins."""
    at = 2
    for _ in range(MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found.end() + 2 > len(data):
            return
        marker, content = data[found.end() - 1], found.end() + 2
        yield marker, content
        if marker in (0xD9, 0xDA):
            return
        at = found.end() + int.from_bytes(data[found.end() : content], "big")


def _neither(data: bytes, where: str) -> DataError:
    return image_unreadable(where, f"{len(data):,} bytes that start with {data[:4]!r}")
