"""Writes any source as RecordIO, as `im2rec --pack-label --pass-through` would."""

import os
import pathlib
import struct
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float32

from ssd_jax.data import codes
from ssd_jax.data.sources.base import Annotations, Source
from ssd_jax.data.sources.recordio_file import MAX_PAYLOAD, frame
from ssd_jax.errors import DataError, UserError
from ssd_jax.files import whole_file

_IR_HEADER = struct.Struct("<IfQQ")
_OBJECT_WIDTH = 6


def write_recordio(
    path: str | os.PathLike,
    source: Source,
    *,
    images: Iterable[bytes] | None = None,
) -> None:
    """Write `NAME.rec`, and `NAME.idx` and `NAME.lst` beside it; images are passed through.

    The difficult flag is the last of the six numbers of an object. The header is `[4, B, width,
    height]` if the source knows the sizes of all images, else `[2, B]`. An image without objects
    gets one of class -1 without area, which MXNet's iterator requires and drops. Names that are
    whole numbers become the keys; otherwise keys count from 0. `images` are the bytes of all images
    in order, if they are read elsewhere. Existing files are replaced only when all is written.
    """
    path = pathlib.Path(path)
    if path.suffix != ".rec":
        raise UserError(f"{path}: expected a name that ends in .rec")
    images = images or map(source.read_image, range(len(source)))
    columns = source.annotations
    sized = bool((columns.sizes > 0).all())
    index_path = path.with_suffix(".idx")
    # They get their names in reverse order: the record file first.
    with (
        whole_file(path.with_suffix(".lst")) as listing_part,
        whole_file(index_path) as index_part,
        whole_file(path) as record_part,
    ):
        with (
            record_part.open("wb") as record_file,
            index_part.open("w", encoding="utf-8", newline="\n") as index,
            listing_part.open("w", encoding="utf-8", newline="\n") as listing,
        ):
            for i, (key, image) in enumerate(zip(_keys(source.names), images, strict=True)):
                label = _label(columns, i, sized=sized)
                payload = _IR_HEADER.pack(len(label), 0.0, key, 0) + label.tobytes() + image
                if len(payload) > MAX_PAYLOAD:
                    raise _too_large(source.locate(i), len(payload))
                index.write(f"{key}\t{record_file.tell()}\n")
                record_file.write(frame(payload))
                numbers = "\t".join(map(str, label))
                name = " ".join(source.names[i].split())
                listing.write(f"{key}\t{numbers}\t{name}\n")
        # Even after an interruption there is no index beside the records of another file.
        index_path.unlink(missing_ok=True)


def _keys(names: Sequence[str]) -> Iterable[int]:
    # 18 digits fit into the 64 bits of a record's id.
    if all(len(name) <= 18 and name.isdecimal() and name == str(int(name)) for name in names):
        return map(int, names)
    return range(len(names))


def _label(columns: Annotations, image: int, *, sized: bool) -> Float32[np.ndarray, "L"]:
    objects = slice(columns.offsets[image], columns.offsets[image + 1])
    rows = np.zeros((max(1, objects.stop - objects.start), _OBJECT_WIDTH), "<f4")
    if objects.stop > objects.start:
        rows[:, 0] = columns.labels[objects]
        rows[:, 1:5] = columns.boxes[objects]
        rows[:, 5] = columns.difficult[objects]
    else:
        rows[0, 0] = -1
    size = columns.sizes[image, ::-1] if sized else ()
    header = np.array([2 + len(size), _OBJECT_WIDTH, *size], "<f4")
    return np.concatenate([header, rows.ravel()])


def _too_large(where: str, length: int) -> DataError:
    return DataError(
        codes.IMAGE_TOO_LARGE,
        where,
        f"image and label have {length:,} bytes, expected at most {MAX_PAYLOAD:,} in a record",
        "Scale the image down",
    )
