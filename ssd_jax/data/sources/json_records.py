"""Shared by formats of JSON and of text lines: careful reading, and references to images.

The files may come from anywhere, so sizes are bounded, every value is checked before it is used,
and an error is a `DataError` with its place. Boxes are left, top, width, height in pixels from 0.
"""

import json
import math
import os
import pathlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ssd_jax.data import codes
from ssd_jax.data.sources.image_file import MAX_PIXELS_OF_A_SIDE, image_missing
from ssd_jax.errors import DataError

# Ten thousand objects of 200 bytes each are 2 MB.
MAX_RECORD_BYTES = 8 * 2**20
# A larger number is a mistake, and its squares and products would overflow.
LARGEST_COORDINATE = 1e9
LARGEST_AREA = LARGEST_COORDINATE**2


class Box(NamedTuple):
    """A box as written, in pixels from 0; `corners` and `area` are NaN for values not numbers."""

    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    area: float
    text: str


def read_json(
    path: pathlib.Path, *, max_bytes: int = MAX_RECORD_BYTES, drop: Collection[str] = ()
) -> Any:
    """The value in a file; see `parse_json`."""
    return parse_json(
        read_bytes(path, max_bytes=max_bytes), str(path), max_bytes=max_bytes, drop=drop
    )


def read_bytes(path: pathlib.Path, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
    """The bytes of a file of annotations."""
    try:
        with path.open("rb") as file:
            # Not the limit itself: the memory for it would be allocated at once.
            data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    except OSError as error:
        raise unreadable(str(path), f"the file cannot be read ({error})") from error
    _check_length(data, str(path), max_bytes)
    return data


def _check_length(data: bytes, where: str, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise DataError(
            codes.ANNOTATION_TOO_LARGE,
            where,
            f"more than {max_bytes:,} bytes, expected less for an annotation of this kind",
            "Check that it is an annotation",
        )


def parse_json(
    data: bytes, where: str, *, max_bytes: int = MAX_RECORD_BYTES, drop: Collection[str] = ()
) -> Any:
    """The value of a JSON text (UTF-8). A key given twice is an error; `drop` keys are left out.

    Dropped values do not accumulate in memory: most of a COCO file is outlines of objects.
    """

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice = next(
                key for key, count in Counter(key for key, _ in pairs).items() if count > 1
            )
            raise unreadable(where, f"the key {twice!r} appears twice in one object")
        for key in drop:
            value.pop(key, None)
        return value

    _check_length(data, where, max_bytes)
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=build)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        problem = "too deeply nested" if isinstance(error, RecursionError) else error
        raise unreadable(where, f"the JSON cannot be read ({problem})") from error


def unreadable(where: str, problem: str) -> DataError:
    """The error for an annotation that does not follow its format."""
    return DataError(codes.ANNOTATION_UNREADABLE, where, problem, "Correct it")


def member(value: Any, key: str, kind: type, where: str) -> Any:
    """`value[key]`, which must be of the type `kind`."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        kinds = {dict: "an object", list: "a list", str: "a string"}
        raise unreadable(where, f"{key!r} is {shown(found)}, expected {kinds[kind]}")
    return found


def text(value: Any, key: str, where: str) -> str:
    """`value[key]`, a string that can be printed and written to a file."""
    found = member(value, key, str, where)
    if (
        not found.strip()
        or "\0" in found
        or any(0xD800 <= ord(letter) < 0xE000 for letter in found)
    ):
        raise unreadable(where, f"{key!r} is {found!r}, expected a printable string")
    return found


def whole_number(value: Any) -> int | None:
    """An integer, also one that is written as 3.0 or "3"; None for anything else."""
    if isinstance(value, str) and len(value) < 20:
        try:
            return int(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def side(value: Any, key: str, where: str) -> int:
    """`value[key]`, a side of an image in pixels."""
    found = value.get(key) if isinstance(value, dict) else None
    pixels = whole_number(found)
    if pixels is None or not 1 <= pixels <= MAX_PIXELS_OF_A_SIDE:
        raise unreadable(where, f"{key!r} is {shown(found)}, expected a whole number of pixels")
    return pixels


def bounded(value: Any, largest: float) -> float:
    """A number that is not beyond `largest`; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) <= largest else math.nan


def flag(value: dict[str, Any], key: str, where: str) -> bool:
    """`value[key]`, 0 or 1, false or true; absent or null is 0."""
    found = value.get(key)
    found = 0 if found is None else found
    if not isinstance(found, (int, float)) or found not in (0, 1):
        raise unreadable(where, f"{key!r} is {shown(found)}, expected 0 or 1")
    return bool(found)


def box(left: Any, top: Any, width: Any, height: Any) -> Box:
    """A box from four values that should be numbers."""
    values = (left, top, width, height)
    x, y, w, h = (bounded(value, LARGEST_COORDINATE) for value in values)
    fields = zip(("left", "top", "width", "height"), values, strict=True)
    text = ", ".join(f"{name} {shown(value)}" for name, value in fields)
    return Box((x, y, x + w, y + h), w * h, text)


def shown(value: Any) -> str:
    """A value for a message, cut to a readable length."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def corner_column(boxes: Sequence[Box]) -> Float[np.ndarray, "M 4"]:
    """The corners of boxes, in pixels."""
    return np.array([box.corners for box in boxes], np.float64).reshape(-1, 4)


def short_names(references: Sequence[str]) -> tuple[str, ...]:
    """A unique name for each reference: without folder and suffix if these are unique.

    Otherwise the suffix is dropped, or nothing. The references must differ.
    """
    paths = [
        pathlib.PurePosixPath(reference.partition("://")[2] or reference)
        for reference in references
    ]
    for shorten in (lambda path: path.stem, lambda path: str(path.with_suffix(""))):
        names = tuple(shorten(path) if path.name else str(path) for path in paths)
        if len(set(names)) == len(names):
            return names
    return tuple(references)


def path_inside(folder: pathlib.Path, reference: str, where: str) -> pathlib.Path:
    """The file that a reference names; it must be inside the folder."""
    parts = pathlib.PurePosixPath(reference)
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(
            codes.REFERENCE_OUTSIDE,
            where,
            f"the image {shown(reference)} is outside its folder, expected a path inside {folder}",
            "Correct the path, or give the folder that holds all images",
        )
    path = folder / parts
    try:
        found = path.is_file()
    except OSError:  # a name that is too long
        found = False
    if not found:
        hint = " (folders are separated by /)" if "\\" in reference else ""
        raise image_missing(str(path), f"{where} names it, but there is no such file{hint}")
    return path


def listed_twice(where: str, reference: str) -> DataError:
    """The error for an image with two records."""
    return DataError(
        codes.RECORD_TWICE,
        where,
        f"the image {shown(reference)} already has a record, expected one with all its objects",
        "Join the records, or remove one of them",
    )


def check_folder(folder: pathlib.Path) -> None:
    """Raise a `DataError` if there is no such folder."""
    if not folder.is_dir():
        raise DataError(
            codes.FOLDER_MISSING,
            str(folder),
            "there is no such folder, expected one with images and their annotations",
            "Correct the path",
        )
