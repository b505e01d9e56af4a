"""Images and boxes that a program already has in memory, without annotation files."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from ssd_jax.data.sources.base import Problems, Source, check_not_empty, source_of_objects
from ssd_jax.data.sources.image_file import read_file
from ssd_jax.errors import UserError

# One entry per image; arrays of equal shape may be stacked.
Columns = Sequence[Any] | np.ndarray

# Marks the place of an image that has no file, followed by its name.
IN_MEMORY = "memory://"
# A larger coordinate means that boxes are in pixels, not normalised; boxes slightly outside the
# image are found by the checks of all formats.
_PIXELS = 2.0
# From 0 to 9, always lossless; low, because training encodes and decodes again in every epoch.
_COMPRESSION = [cv2.IMWRITE_PNG_COMPRESSION, 1]


def source_from_arrays(
    images: Columns,
    boxes: Columns,
    labels: Columns,
    classes: Sequence[str],
    *,
    difficult: Columns | None = None,
    names: Sequence[str] | None = None,
    problems: Problems | None = None,
) -> Source:
    """A source from sequences with one entry per image.

    An image is an RGB array uint8 [H, W, 3], the bytes of a JPEG or PNG file, or the path of one.
    Its boxes are float [N, 4], normalised xyxy in [0, 1]; its labels are int [N], indices into
    `classes`; both are empty for an image without objects. `difficult` flags objects, bool [N];
    default: none. `names` identify images in messages and reports; default: "0", "1", ...
    `problems` says whether unusable images and boxes are refused (default) or left out:
    `Problems("skip")`. An array is encoded as PNG every time it is read, which `config.data.cache`
    "ram" or "device" avoids.

    Raises:
      UserError: an entry has a wrong type or shape, or boxes are in pixels. A box that cannot be
        used is a `DataError`, as in every format.
    """
    count = len(images)
    names = [str(index) for index in range(count)] if names is None else [str(n) for n in names]
    for word, entries in (("boxes", boxes), ("labels", labels), ("names", names),
                          ("difficult", difficult)):  # fmt: skip
        if entries is not None and len(entries) != count:
            raise UserError(
                f"{word}: got {len(entries)} entries, expected {count}, one per image. Give an "
                "empty entry for an image without objects."
            )
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"names: got {twice!r} more than once, expected each once. Change one.")
    boxes = [_checked_boxes(each, index) for index, each in enumerate(boxes)]
    counts = np.array([len(each) for each in boxes], np.int64)

    def column(word: str, entries: Columns, kinds: str, expected: str) -> np.ndarray:
        arrays = [np.asarray(each) for each in entries]
        for index, (each, objects) in enumerate(zip(arrays, counts.tolist(), strict=True)):
            if each.shape != (objects,) or (objects and each.dtype.kind not in kinds):
                raise _unexpected(f"{word}[{index}]", each, f"{expected}[{objects}], one per box")
        return np.concatenate([np.zeros(0, np.int64), *(each.astype(np.int64) for each in arrays)])

    flags = [np.zeros(n, bool) for n in counts] if difficult is None else difficult
    ids = column("labels", labels, "iu", "class ids, int")
    flat = np.concatenate([np.zeros((0, 4)), *boxes])
    source = source_of_objects(
        names=names,
        sizes=np.array([_size(each, i) for i, each in enumerate(images)], np.int32).reshape(-1, 2),
        object_counts=counts,
        written=flat,
        boxes=flat,
        labels=ids,
        difficult=column("difficult", flags, "b", "bool").astype(bool),
        classes=(classes,) if isinstance(classes, str) else tuple(classes),
        read_image=lambda index: _encoded(images[index]),
        locate=lambda index: _place(images[index], names[index]),
        problems=problems or Problems(),
        locate_object=lambda image, number: f"image {names[image]!r}, object {number}",
        label_text=lambda k: str(ids[k]),
    )
    return check_not_empty(source, "images")


def _checked_boxes(boxes: Any, index: int) -> Float[np.ndarray, "N 4"]:
    array = np.asarray(boxes)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind != "f":
        raise _unexpected(f"boxes[{index}]", array, "float[N, 4] with xmin, ymin, xmax, ymax")
    if np.nanmax(array) > _PIXELS:
        raise UserError(
            f"boxes[{index}]: got {array[np.nanargmax(array) // 4].tolist()}, expected fractions "
            "of the image sides, from 0 to 1. Divide x by the width and y by the height."
        )
    return array.astype(np.float64)


def _size(image: Any, index: int) -> tuple[int, int]:
    """(height, width) of an array; the size of a file is known only when it is decoded."""
    if isinstance(image, bytes | str | os.PathLike):
        return 0, 0
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        expected = "uint8[height, width, 3] in RGB, the bytes of a JPEG or PNG file, or its path"
        raise _unexpected(f"images[{index}]", array, expected)
    return array.shape[:2]


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_file(pathlib.Path(image))
    picture = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", picture, _COMPRESSION)[1].tobytes()


def _place(image: Any, name: str) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"{IN_MEMORY}{name}"


def _unexpected(what: str, got: np.ndarray, expected: str) -> UserError:
    return UserError(f"{what}: got {got.dtype}{list(got.shape)}, expected {expected}. Convert it.")
