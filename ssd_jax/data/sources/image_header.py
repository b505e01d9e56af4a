"""The size of an image from its first bytes."""

import io

from PIL import Image, UnidentifiedImageError

from ssd_jax.data import codes
from ssd_jax.errors import DataError

_EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
_FIRST_BYTES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}


def image_suffix(data: bytes, where: str) -> str:
    """`.jpg` or `.png`, by content."""
    for start, suffix in _FIRST_BYTES.items():
        if data.startswith(start):
            return suffix
    raise _neither(data, where)


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) as decoded: the EXIF orientation is applied. Nothing else is decoded."""
    image = _open(data, where)
    try:
        turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    except Exception:  # Pillow raises many kinds on damaged EXIF data, which decoders pass over
        turned = False
    return image.size if turned else image.size[::-1]


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
    return DataError(
        codes.IMAGE_UNREADABLE,
        where,
        f"{len(data):,} bytes that start with {data[:4]!r}, expected a JPEG or PNG file",
        "Replace the file, or take it out of the data set",
    )
