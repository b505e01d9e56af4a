"""Decoding of image files to a uint8 canvas, the same for training, evaluation and serving.

JPEG and PNG of any depth and colour space become 8-bit RGB; an alpha channel is ignored. The EXIF
orientation is applied first, so "the image" is always the one that a viewer shows, and boxes must
have been drawn on it.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from ssd_jax.data import codes
from ssd_jax.data.sources.image_file import Header, image_unreadable, read_header
from ssd_jax.errors import DataError
from ssd_jax.types import Batch, Example

# Images are already decoded in parallel, so OpenCV's own threads only cost time: 5.0 ms of CPU time
# instead of 2.9 ms for one resize from 640 to 512 pixels on two cores.
cv2.setNumThreads(1)

REDUCED_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def decode_image(
    data: bytes, name: str, canvas_side: int
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[int, int], tuple[int, int]]:
    """Decode into the upper left corner of a square canvas of zeros.

    An image larger than the canvas is scaled down to fit, keeping its aspect ratio. `name` is used
    in errors. Returns (canvas, extent, size): `extent` is the image's (height, width) on the
    canvas, `size` its (height, width) in the file.
    """
    canvas = np.empty((canvas_side, canvas_side, 3), np.uint8)
    return canvas, *draw_image(canvas, data, name)


def draw_image(
    canvas: UInt8[np.ndarray, "S S 3"], data: bytes, name: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """`decode_image` into an existing canvas, whatever it holds; returns (extent, size)."""
    canvas_side = len(canvas)
    header = read_header(data, name)
    if not header.complete:
        raise image_unreadable(name, f"the {header.kind} file ends early ({len(data):,} bytes)")

    factor = _reduction(header, canvas_side)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED_FLAGS[factor])
    except cv2.error as error:
        raise image_unreadable(name, f"the {header.kind} data is damaged ({error})") from error
    if picture is None:
        raise image_unreadable(name, f"the {header.kind} data is damaged")

    as_stored = picture.shape[:2] == _divided(header.size, factor)
    size = header.size if as_stored else header.size[::-1]  # turned by its EXIF orientation
    return draw_pixels(canvas, picture, size), size


def draw_pixels(
    canvas: UInt8[np.ndarray, "S S 3"],
    picture: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
) -> tuple[int, int]:
    """The same for a decoded BGR image, perhaps reduced from `size`; returns its extent."""
    scale = min(1.0, len(canvas) / max(size))
    extent = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    if picture.shape[:2] != extent:
        picture = cv2.resize(picture, extent[::-1], interpolation=cv2.INTER_AREA)
    cv2.cvtColor(picture, cv2.COLOR_BGR2RGB, dst=canvas[: extent[0], : extent[1]])
    canvas[: extent[0], extent[1] :] = 0
    canvas[extent[0] :] = 0
    return extent


def empty_rows(*leading: int, canvas: int, max_objects: int) -> Batch:
    """Uninitialised memory for the rows of a batch; `canvas` is the side in pixels."""
    return Batch(
        canvas=np.empty((*leading, canvas, canvas, 3), np.uint8),
        extent=np.empty((*leading, 2), np.int32),
        size=np.empty((*leading, 2), np.int32),
        boxes=np.empty((*leading, max_objects, 4), np.float32),
        labels=np.empty((*leading, max_objects), np.int32),
        difficult=np.empty((*leading, max_objects), bool),
        valid=np.empty((*leading, max_objects), bool),
        sample_id=np.empty(leading, np.int32),
        real=np.empty(leading, bool),
    )


def decode_example(example: Example, sample_id: int, *, canvas: int, max_objects: int) -> Batch:
    """One row of a batch: a `Batch` without the axis B; `canvas` is the side in pixels."""
    row = empty_rows(canvas=canvas, max_objects=max_objects)
    decode_into(row, example, sample_id)
    return row


def decode_into(row: Batch, example: Example, sample_id: int) -> None:
    """`decode_example` into an existing row.

    Rows of a batch are filled in place: no canvas is copied, and the system need not clear memory
    for each.
    """
    count, max_objects = len(example.labels), len(row.labels)
    if count > max_objects:
        raise DataError(
            codes.TOO_MANY_OBJECTS,
            f"{example.name} (sample {sample_id})",
            f"{count} objects, expected at most {max_objects}",
            f"Set max_objects to {count} or more",
        )
    extent, size = draw_image(row.canvas, example.image, example.name)
    if example.size is not None and size != example.size:
        raise _size_disagrees(example, size)
    row.extent[:] = extent
    row.size[:] = size
    for name in ("boxes", "labels", "difficult"):
        padded = getattr(row, name)
        padded[:count] = getattr(example, name)
        padded[count:] = 0
    row.valid[:count] = True
    row.valid[count:] = False
    row.sample_id[...] = sample_id
    row.real[...] = True


def _reduction(header: Header, canvas_side: int) -> int:
    """The factor by which libjpeg can shrink the image while decoding, which is much cheaper."""
    height, width = header.size
    for factor in (8, 4, 2):
        reduced = _divided(header.size, factor)
        # If the reduced image is square, its shape no longer shows whether EXIF turned it.
        tells_turn = height == width or reduced[0] != reduced[1]
        if header.kind == "JPEG" and max(reduced) >= canvas_side and tells_turn:
            return factor
    return 1


def _divided(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return (-(-size[0] // factor), -(-size[1] // factor))


def _size_disagrees(example: Example, size: tuple[int, int]) -> DataError:
    expected = f"{example.size[1]} x {example.size[0]}"
    problem = f"the image has {size[1]} x {size[0]} pixels, expected {expected} as annotated"
    fix = "Correct the size in the annotation and check its boxes"
    if size == example.size[::-1]:
        problem += " (the two are swapped, as by an EXIF orientation)"
        fix = (
            "EXIF orientation is applied when an image is read: annotate the image as a viewer "
            "shows it, or remove the tag from the file"
        )
    return DataError(codes.SIZE_DISAGREES, example.name, problem, fix)
