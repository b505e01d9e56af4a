"""RecordIO files of MXNet: an image and its detection label in each record.

A record's payload is MXNet's IRHeader (uint32 count of numbers, float32, uint64 id, uint64), that
many float32 numbers, and the image file. A detection label is `[A, B, A - 2 more numbers, objects]`
with B numbers per object: class id, xmin, ymin, xmax, ymax in fractions of the image, and difficult
(0 or 1) if B is 6 or more. GluonCV's header of four numbers, `[4, B, width, height]`, has the size
(MXNet `python/mxnet/recordio.py`, `src/io/image_det_aug_default.cc`).
"""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt32

from ssd_jax.data import codes
from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    names_are_numbers,
    source_of_objects,
)
from ssd_jax.data.sources.image_file import are_scaled
from ssd_jax.data.sources.recordio_file import (
    FIRST,
    HEAD_BYTES,
    MAGIC,
    MAX_PAYLOAD,
    WHOLE,
    RecordFile,
    cached_offsets,
    read_index,
)
from ssd_jax.errors import DataError

IR_HEADER_BYTES = 24
# Offsets in the payload, in words of four bytes: the label's length, its only number if that is 0,
# the id, and the label.
_LENGTH, _ID, _LABEL = 0, 2, 6
# In a set without class names, a larger class id is treated as a mistake.
MAX_CLASSES = 10_000
_MAX_SIDE = 65_535  # of a JPEG file
_LABEL_TEXT = (
    "[A, B, A - 2 numbers, objects of B numbers] with whole numbers A >= 2 and B >= 5, as im2rec "
    "--pack-label writes it"
)
_FIX = "Write the record again"


# Bytes of a file may be any float32, even a signalling NaN: they are compared, then refused.
@np.errstate(invalid="ignore", divide="ignore")
def open_recordio(
    path: str | os.PathLike,
    *,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    index: str | os.PathLike | None = None,
    label_width: int | None = None,
    problems: Problems | None = None,
) -> Source:
    """Open the records of a `.rec` file, in the order of its `.idx` file (default: the one beside).

    Without an `.idx` the file is searched once and the offsets are kept in the user's cache folder.
    A record's name is its key in the `.idx`, else its id. `names` are the class names of the ids,
    if known: `classes` are then matched by name, and default to `names`. Without `names` an id is
    an index into `classes`, by default "0", "1", ... up to the highest id. `label_width`, the
    padded length of a label in MXNet, is not needed; if it is given, a longer label is an error
    whatever the policy.
    """
    problems = problems or Problems()
    reader = _Reader(path, problems, index)
    if label_width is not None:
        reader.check_label_width(label_width)
    file, heads = reader.file, reader.heads
    objects = reader.objects()
    ids = objects.rows[:, 0]
    by_name = names and classes and not (names_are_numbers(names) or names_are_numbers(classes))
    listed = names if by_name else classes or names
    known = (ids >= 0) & (ids < (len(listed) if listed else MAX_CLASSES)) & (ids % 1 == 0)
    labels = np.where(known, ids, -1).astype(np.int64)
    if by_name:
        # The appended -1 is what label -1 indexes.
        labels = np.append(class_ids(names, classes), -1)[labels]
    classes = classes or names
    if not classes:
        classes = [str(number) for number in range(labels.max(initial=-1) + 1)]
    written = objects.rows[:, 1:].astype(np.float64)
    label_ends = IR_HEADER_BYTES + 4 * reader.labels.width
    # Memory views, because reading one number from an array costs three times as much.
    offsets = np.where(heads.split, -1, heads.offset + HEAD_BYTES + label_ends).data
    lengths = (heads.length - label_ends).data

    def read_image(index: int) -> bytes:
        if (offset := offsets[index]) >= 0:
            return file.read(offset, lengths[index])
        return file.payload(int(heads.offset[index]))[int(label_ends[index]) :]

    if are_scaled(read_image, sizes := reader.sizes()):
        sizes[:] = 0  # those before `im2rec --resize`; the boxes are fractions of any
    source = source_of_objects(
        names=reader.names(),
        sizes=sizes,
        object_counts=np.bincount(objects.record, minlength=len(heads.number)),
        written=written,
        boxes=written,
        labels=labels,
        difficult=objects.difficult,
        classes=classes,
        read_image=read_image,
        locate=reader.place,
        problems=problems,
        locate_object=lambda image, number: f"{reader.place(image)}, object {number}",
        label_text=lambda k: names[int(ids[k])] if by_name and known[k] else f"{ids[k]:g}",
        files=[file.name] if reader.keys is None else [file.name, str(reader.index)],
    )
    return check_not_empty(source, file.name)


@np.errstate(invalid="ignore", divide="ignore")
def mixed_object_widths(path: str | os.PathLike) -> DataError | None:
    """The finding that objects have 5 numbers in one record and 6 in another; None if all agree.

    Such a file can be read here, but mxnet-ssd's iterator splits the labels of a whole batch by the
    widths of its first record. Records that cannot be used are ignored.
    """
    reader = _Reader(path, Problems("skip"))
    with_objects = np.flatnonzero(reader.labels.object_count)
    widths, first, counts = np.unique(
        reader.labels.object_width[with_objects], return_index=True, return_counts=True
    )
    if len(widths) < 2:
        return None
    found = ", ".join(
        f"{width} in {count:,} records" for width, count in zip(widths, counts, strict=True)
    )
    return DataError(
        codes.OBJECT_WIDTHS_MIXED,
        reader.place(int(with_objects[first[np.argmin(counts)]])),
        f"objects have different widths ({found}), expected one width per file",
        "Write it again with `ssd-jax convert`; other readers may misread its labels",
    )


def not_indexed(path: str | os.PathLike, index: str | os.PathLike) -> DataError | None:
    """The finding that a `.rec` file holds records missing from its `.idx` file; else None."""
    try:
        file = RecordFile(path)
        listed = read_index(pathlib.Path(index), record_bytes=file.size)[1]
        found = cached_offsets(file, Problems("skip"))
    except DataError:  # reported when the file is opened
        return None
    left_out = np.setdiff1d(found, listed)
    if not len(left_out):
        return None
    return DataError(
        codes.RECORDS_NOT_INDEXED,
        str(index),
        f"{len(left_out):,} of the {len(found):,} records of {path} are missing, the first at "
        f"byte {left_out[0]:,}, expected all",
        "Remove the .idx file: without it the .rec file is searched",
    )


class _Heads(NamedTuple):
    """The N records that are complete, as columns.

    `number` counts all records of the file, from 0; `length` is the length of the payload in
    bytes, `position` the index of its first word in `_Words`.
    """

    number: Int[np.ndarray, "N"]
    offset: Int[np.ndarray, "N"]
    length: Int[np.ndarray, "N"]
    position: Int[np.ndarray, "N"]
    split: Bool[np.ndarray, "N"]

    def only(self, mask: Bool[np.ndarray, "N"]) -> "_Heads":
        """The records that a mask selects."""
        return _Heads(*(column[mask] for column in self))


class _Labels(NamedTuple):
    """The counts of numbers and of objects in the labels of N records.

    `width` counts all numbers of a label; `header_width` and `object_width` are its first two
    numbers, with `object_width` 0 if it has no object.
    """

    width: Int[np.ndarray, "N"]
    header_width: Int[np.ndarray, "N"]
    object_width: Int[np.ndarray, "N"]
    object_count: Int[np.ndarray, "N"]


class _Objects(NamedTuple):
    """M objects: the record of each, its class id and corners as written, its difficult flag."""

    record: Int[np.ndarray, "M"]
    rows: Float32[np.ndarray, "M 5"]
    difficult: Bool[np.ndarray, "M"]


class _Words(NamedTuple):
    """The words of a file, followed by the words of labels joined from several parts."""

    mapped: UInt32[np.ndarray, "W"]
    joined: UInt32[np.ndarray, "J"]

    def take(self, positions: Int[np.ndarray, "*S"]) -> UInt32[np.ndarray, "*S"]:
        """The words at some positions."""
        if not len(self.joined):
            return self.mapped[positions]
        words = np.empty(positions.shape, "<u4")
        inside = positions < len(self.mapped)
        words[inside] = self.mapped[positions[inside]]
        words[~inside] = self.joined[positions[~inside] - len(self.mapped)]
        return words

    def take_numbers(self, positions: Int[np.ndarray, "*S"]) -> Float32[np.ndarray, "*S"]:
        """The same words as float32."""
        return self.take(positions).view("<f4")


class _Reader:
    """The usable records of a file, read at once; `heads` and `labels` have one row for each."""

    def __init__(
        self,
        path: str | os.PathLike,
        problems: Problems,
        index: str | os.PathLike | None = None,
    ):
        self.file = RecordFile(path)
        self.index = self.file.path.with_suffix(".idx") if index is None else pathlib.Path(index)
        self.problems = problems
        self.keys: list[str] | None = None
        if self.index.exists():
            self.keys, offsets = read_index(self.index, record_bytes=self.file.size)
        else:
            offsets = cached_offsets(self.file, problems)
        heads, self.words = self._read_heads(self._check_offsets(offsets))
        self.heads, self.labels = self._read_labels(heads)

    def place(self, index: int) -> str:
        """Where a usable record is, for messages."""
        return self._place(self.heads.number.data[index])

    def names(self) -> list[str]:
        """The keys of the index; without one the ids, or record numbers if ids are not unique."""
        if self.keys is not None:
            return [self.keys[number] for number in self.heads.number.tolist()]
        low, high = (self.words.take(self.heads.position + word) for word in (_ID, _ID + 1))
        ids = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        unique = len(np.unique(ids)) == len(ids)
        return [str(number) for number in (ids if unique else self.heads.number).tolist()]

    def sizes(self) -> Int[np.ndarray, "N 2"]:
        """(height, width) of the images, 0 if the label's header does not have it."""
        sizes = np.zeros((len(self.heads.number), 2), np.int32)
        telling = np.flatnonzero(self.labels.header_width == 4)
        begin = self.heads.position[telling] + _LABEL
        sides = self.words.take_numbers(begin[:, None] + [3, 2])
        sound = ((sides >= 1) & (sides <= _MAX_SIDE) & (sides % 1 == 0)).all(axis=1)
        sizes[telling[sound]] = sides[sound]
        return sizes

    def objects(self) -> _Objects:
        """The objects of all records, without the rows that mean "no object".

        MXNet's iterator requires an object in each label, so an image without objects has one of
        class -1 or of zeros only, which the iterator then drops because it has no area.
        """
        counts = self.labels.object_count
        record = np.repeat(np.arange(len(counts)), counts)
        nth = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = self.labels.object_width[record]
        begin = (self.heads.position + _LABEL + self.labels.header_width)[record] + nth * width
        rows = self.words.take_numbers(begin[:, None] + np.arange(5))
        difficult = np.zeros(len(record), bool)
        difficult[width > 5] = self.words.take_numbers(begin[width > 5] + 5) > 0
        without_area = (rows[:, 3:] <= rows[:, 1:3]).any(axis=1)
        shown = ~(without_area & ((rows[:, 0] == -1) | (rows == 0).all(axis=1)))
        return _Objects(record[shown], rows[shown], difficult[shown])

    def check_label_width(self, label_width: int) -> None:
        """Raise a `DataError` that names the longest label, if it is longer than `label_width`."""
        width = self.labels.width.max(initial=0)
        if width > label_width:
            raise DataError(
                codes.LABEL_WIDTH_SMALL,
                self.place(int(np.argmax(self.labels.width))),
                f"the longest label has {width} numbers, expected at most {label_width}",
                f"Set label_width to {width} or more, or leave it out: it is measured",
            )

    def _place(self, number: int) -> str:
        if self.keys is None:
            return f"{self.file.name}, record {number}"
        return f"{self.file.name}, record {number} (key {self.keys[number]})"

    def _refuse(self, code: str, number: int, problem: str, fix: str = _FIX) -> None:
        self.problems(DataError(code, self._place(number), problem, fix))

    def _check_offsets(self, offsets: Int[np.ndarray, "R"]) -> Int[np.ndarray, "R"]:
        """The offsets, with -1 where no record begins or the key is a duplicate."""
        words = self.file.words
        leads = (offsets >= 0) & (offsets % 4 == 0) & (offsets <= self.file.size - HEAD_BYTES)
        position = offsets[leads] // 4
        flag = words[position + 1] >> 29
        leads[leads] = (words[position] == MAGIC) & ((flag == WHOLE) | (flag == FIRST))
        for number in np.flatnonzero(~leads).tolist():
            problem = f"no record begins at byte {offsets[number]:,}, expected one by the index"
            fix = "Remove the .idx file: without it the .rec file is searched"
            self._refuse(codes.RECORD_INDEX_UNREADABLE, number, problem, fix)
        if self.keys is not None and len(set(self.keys)) < len(self.keys):
            seen = set()
            for number, key in enumerate(self.keys):
                if key in seen:
                    leads[number] = False
                    self._refuse(codes.RECORD_TWICE, number, "the key is in the index twice")
                seen.add(key)
        return np.where(leads, offsets, -1)

    def _read_heads(self, offsets: Int[np.ndarray, "R"]) -> tuple[_Heads, _Words]:
        """The records that are complete, and the words with their labels."""
        number = np.flatnonzero(offsets >= 0)
        offset = offsets[number]
        # A record must end before the next one begins; otherwise an index could make thousands of
        # records out of the same bytes.
        order = np.argsort(offset)
        limit = np.empty_like(offset)
        limit[order] = np.append(offset[order], self.file.size)[1:]
        mapped = self.file.words
        position = (offset + HEAD_BYTES) // 4
        word = mapped[position - 1]
        split = word >> 29 == FIRST
        length = (word & MAX_PAYLOAD).astype(np.int64)
        whole = split | (offset + HEAD_BYTES + length <= limit)
        for i in np.flatnonzero(~whole).tolist():
            problem = (
                f"a record of {length[i]:,} bytes at byte {offset[i]:,} is cut off at {limit[i]:,}"
            )
            self._refuse(codes.RECORD_DAMAGED, int(number[i]), problem)

        joined, count = [], len(mapped)
        for i in np.flatnonzero(split).tolist():
            try:
                payload = self.file.payload(int(offset[i]), int(limit[i]))
            except DataError as error:
                self.problems(error)
                whole[i] = False
                continue
            label_end = IR_HEADER_BYTES + 4 * int.from_bytes(payload[:4], "little")
            joined.append(payload[: min(label_end, len(payload)) // 4 * 4])
            position[i], length[i] = count, len(payload)
            count += len(joined[-1]) // 4
        heads = _Heads(number, offset, length, position, split)
        return heads.only(whole), _Words(mapped, np.frombuffer(b"".join(joined), "<u4"))

    def _read_labels(self, heads: _Heads) -> tuple[_Heads, _Labels]:
        """The records with a valid label, and the widths and counts of these labels."""
        fits = heads.length >= IR_HEADER_BYTES
        width = np.zeros(len(fits), np.int64)
        width[fits] = self.words.take(heads.position[fits] + _LENGTH)
        fits &= IR_HEADER_BYTES + 4 * width <= heads.length
        detection = fits & (width >= 2)
        first_two = np.zeros((len(fits), 2))
        first_two[detection] = self.words.take_numbers(
            heads.position[detection][:, None] + [_LABEL, _LABEL + 1]
        )
        header_width, object_width = first_two.T
        rest = width - header_width
        divides = (object_width >= 5) & (object_width % 1 == 0) & (rest % object_width == 0)
        sound = (header_width >= 2) & (header_width % 1 == 0) & (rest >= 0)
        sound &= detection & (divides | (rest == 0))
        for i in np.flatnonzero(~sound).tolist():
            if not fits[i]:
                problem = f"a payload of {heads.length[i]:,} bytes, expected {IR_HEADER_BYTES} for "
                problem += f"the header, 4 for each of {width[i]:,} numbers, and an image"
            elif not detection[i]:
                problem = f"a label of {max(width[i], 1)} number, as for classification, "
                problem += f"expected {_LABEL_TEXT}"
            else:
                problem = f"a label of {width[i]:,} numbers that begins with {header_width[i]:g}, "
                problem += f"{object_width[i]:g}, expected {_LABEL_TEXT}"
            self._refuse(codes.LABEL_UNREADABLE, int(heads.number[i]), problem)

        objects = np.where(rest > 0, object_width, 0)[sound].astype(np.int64)
        rest = rest[sound].astype(np.int64)
        labels = _Labels(
            width[sound],
            header_width[sound].astype(np.int64),
            objects,
            rest // np.maximum(objects, 1),
        )
        return heads.only(sound), labels
