"""A file of an image, before it is decoded: its bytes, its kind, its size, how it is turned."""

import io
import pathlib

from PIL import Image, UnidentifiedImageError

from ssd_jax.data import codes
from ssd_jax.errors import DataError

_EXIF_ORIENTATION = 0x0112
# The size of a value by its EXIF type; a short is legal, the signed and the long are met too.
_EXIF_BYTES = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4}
_TURNED = (5, 6, 7, 8)
# Of a size that an annotation states.
MAX_PIXELS_OF_A_SIDE = 2**24
_FIRST_BYTES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of an image that was there when the annotations were read."""
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"the image was there when its annotation was read and is not now ({error})"
        raise image_missing(str(path), problem) from error


def image_missing(where: str, problem: str) -> DataError:
    """The error of an image that is not there."""
    return DataError(codes.IMAGE_MISSING, where, problem, "Add the image, or take its record out")


def image_unreadable(where: str, problem: str) -> DataError:
    """The error of bytes that are no whole image."""
    return DataError(
        codes.IMAGE_UNREADABLE,
        where,
        f"{problem}, expected a whole JPEG or PNG file",
        "Replace the file, or leave it out",
    )


def image_suffix(data: bytes, where: str) -> str:
    """`.jpg` or `.png`, by content."""
    for start, suffix in _FIRST_BYTES.items():
        if data.startswith(start):
            return suffix
    raise _neither(data, where)


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) as decoded: the EXIF orientation is applied. Nothing else is decoded."""
    width, height = _open(data, where).size
    return (width, height) if exif_orientation(data) in _TURNED else (height, width)


def exif_orientation(data: bytes) -> int:
    """The EXIF orientation as it stands in a file, legal or not; 1 where there is none.

    The tag 0x0112 of the first directory (TIFF 6.0, section 2; CIPA DC-008, 4.6.4). Pillow's own
    reader obeys XMP too, as decoders do not, reads a PNG to its end, and warns of damage.
    """
    marks = ((data.find(b"Exif\0\0", 0, 2**16), 6), (data.find(b"eXIf", 0, 2**16), 4))
    start = next((at + length for at, length in marks if at >= 0), len(data))
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(data[start : start + 4])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[start + at : start + at + size], order)

    directory = number(4, 4)
    end = min(directory + 2 + 12 * number(directory, 2), len(data) - start)
    for entry in range(directory + 2, end, 12):
        if number(entry, 2) == _EXIF_ORIENTATION:
            return number(entry + 8, _EXIF_BYTES.get(number(entry + 2, 2), 2))
    return 1


def _open(data: bytes, where: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise _neither(data, where) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            codes.IMAGE_TOO_LARGE, where, f"too many pixels ({error})", "Scale the image down"
        ) from error


def _neither(data: bytes, where: str) -> DataError:
    return image_unreadable(where, f"{len(data):,} bytes that start with {data[:4]!r}")
