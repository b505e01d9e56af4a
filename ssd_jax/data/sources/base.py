"""The common form of all formats: annotations as columns, images read on demand.

A format is a function `open_FORMAT(...) -> Source`. It reads annotations only, passes all objects
with their boxes as written to `source_of_objects`, and supplies a function that reads an image.
"""

import collections
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ssd_jax.data import codes
from ssd_jax.errors import DataError, UserError, counted
from ssd_jax.types import NORMALISED_BOXES_END, Example

# Some tools count from 0 or round outwards; a coordinate farther outside than this is a mistake.
TOLERATED_PIXELS_OUTSIDE = 1.0
# As a fraction of a side, for images whose size is not known before they are decoded.
TOLERATED_PART_OUTSIDE = 1 / 300
_FIX = "Correct the box"
# The longest example in a message; an example may list all classes of a set.
EXAMPLE_LETTERS = 200


class Problems:
    """What to do with unusable records and boxes: refuse (`error`) or leave them out (`skip`).

    Readers call it with a `DataError` and continue without the record or box if it returns.
    `advice` is appended to an error that is raised: how to see all errors, and how to skip them.
    """

    def __init__(self, policy: str = "error", *, advice: str = ""):
        if policy not in ("error", "skip"):
            raise UserError(f"data.problems is {policy!r}: expected 'error' or 'skip'")
        self.policy = policy
        self.advice = advice
        self.found: list[DataError] = []

    def __call__(self, error: DataError) -> None:
        """Raise the error, or keep it in `found`."""
        if self.policy == "error":
            fix = ". ".join(filter(None, (error.fix, self.advice)))
            raise DataError(error.code, error.where, error.problem, fix)
        self.found.append(error)

    @property
    def counts(self) -> dict[str, int]:
        """How many were left out, by code."""
        return dict(sorted(collections.Counter(error.code for error in self.found).items()))

    def examples(self) -> list[str]:
        """How many were left out and the first of them, one line per code."""
        first = {error.code: f"{error.where}: {error.problem}" for error in reversed(self.found)}
        return [
            f"{count:,} {code}, first: {first[code]:.{EXAMPLE_LETTERS}}"
            for code, count in self.counts.items()
        ]


class Annotations(NamedTuple):
    """The annotations of N images with M objects, as columns.

    Image i has the objects `offsets[i]` to `offsets[i + 1]`. `sizes` are (height, width) in pixels,
    0 if the format does not give them. Boxes are normalised xyxy in [0, 1].
    """

    names: Sequence[str]
    sizes: Int[np.ndarray, "N 2"]
    offsets: Int[np.ndarray, "N+1"]
    boxes: Float[np.ndarray, "M 4"]
    labels: Int[np.ndarray, "M"]
    difficult: Bool[np.ndarray, "M"]

    @property
    def object_counts(self) -> Int[np.ndarray, "N"]:
        """The number of objects of each image."""
        return np.diff(self.offsets)

    @property
    def image_of_object(self) -> Int[np.ndarray, "M"]:
        """The image that each object belongs to."""
        return np.repeat(np.arange(len(self.names)), self.object_counts)

    def take(self, images: Int[np.ndarray, "K"]) -> "Annotations":
        """The annotations of some images, in the order given."""
        counts = self.object_counts[images]
        offsets = _offsets(counts)
        objects = np.arange(offsets[-1]) + np.repeat(self.offsets[images] - offsets[:-1], counts)
        names = [self.names[image] for image in images]
        columns = (self.boxes[objects], self.labels[objects], self.difficult[objects])
        return Annotations(names, self.sizes[images], offsets, *columns)


class Source:
    """Annotated images of one class list: `len(source)`, `source[i] -> Example`, random access.

    `read_image(i)` gives the bytes of an image file; `locate(i)` gives its place for messages.
    `files` are further files that the images are read from: files of many images, and indices.
    `findings` counts the doctor's findings by code, and `digests` has a hash of each image's bytes;
    both are None if the doctor did not run. `classes_found` is true for a source just opened
    without a class list, whose classes are those of its objects.
    """

    def __init__(
        self,
        annotations: Annotations,
        classes: Sequence[str],
        *,
        read_image: Callable[[int], bytes],
        locate: Callable[[int], str],
        problems: Problems,
        files: Sequence[str] = (),
    ):
        self.annotations = annotations
        self.classes = tuple(classes)
        self.read_image = read_image
        self.locate = locate
        self.problems = problems
        self.files = tuple(files)
        self.findings: dict[str, int] | None = None
        self.digests: tuple[str, ...] | None = None
        self.classes_found = False

    def __len__(self) -> int:
        return len(self.annotations.names)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.example(index, self.read_image(index))

    def example(self, index: int, image: bytes) -> Example:
        """`source[index]`, with the bytes of the image already read."""
        columns = self.annotations
        objects = slice(*columns.offsets[index : index + 2].tolist())
        height, width = columns.sizes[index].tolist()
        return Example(
            name=self.locate(index),
            image=image,
            size=(height, width) if height else None,
            boxes=columns.boxes[objects],
            labels=columns.labels[objects],
            difficult=columns.difficult[objects],
        )

    @property
    def names(self) -> Sequence[str]:
        """One name for each image, unique."""
        return self.annotations.names

    @property
    def object_counts(self) -> Int[np.ndarray, "N"]:
        """The number of objects of each image, known without reading it."""
        return self.annotations.object_counts

    @property
    def fingerprint(self) -> str:
        """A hash of names, sizes, boxes, labels and flags: equal for equal annotations."""
        digest = hashlib.sha256(repr(self.classes).encode())
        digest.update("\n".join(self.names).encode(errors="backslashreplace"))
        for column in self.annotations[1:]:
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()[:16]

    @property
    def image_fingerprint(self) -> str | None:
        """A hash of the bytes of all images, None if the doctor has not examined them."""
        return self.digests and hashlib.sha256("\n".join(self.digests).encode()).hexdigest()[:16]

    def take(
        self, images: Sequence[int] | Int[np.ndarray, "K"] | Bool[np.ndarray, "N"]
    ) -> "Source":
        """A source of some of the images, in the order given; `images` selects as in NumPy."""
        images = np.arange(len(self))[np.asarray(images) if len(images) else []]
        chosen = images.tolist()
        return Source(
            self.annotations.take(images),
            self.classes,
            read_image=lambda index: self.read_image(chosen[index]),
            locate=lambda index: self.locate(chosen[index]),
            problems=self.problems,
            files=self.files,
        )

    def describe(self) -> str:
        """One line for the log: images, objects per class, empty images, images left out."""
        labels = self.annotations.labels
        counts = np.bincount(labels, minlength=len(self.classes))
        classes = ", ".join(f"{n} {c:,}" for n, c in zip(self.classes, counts, strict=True))
        empty = int(np.sum(self.object_counts == 0))
        text = f"{counted(len(self), 'image')}, {counted(len(labels), 'object')} ({classes})"
        text += f", {counted(empty, 'image')} without objects"
        if left_out := [f"{count} {code}" for code, count in self.problems.counts.items()]:
            text += f", left out: {', '.join(left_out)}"
        return text


def combine(sources: Sequence[Source]) -> Source:
    """Concatenate sources, which must have the same classes. Names stay unique.

    Sources with the same `problems` object keep it; otherwise their problems are merged.
    """
    if len({source.classes for source in sources}) != 1:
        raise UserError(
            "sources with different classes cannot be combined: "
            + "; ".join(", ".join(source.classes) for source in sources)
            + ". Give all of them the same list, config.data.classes."
        )
    columns = [source.annotations for source in sources]
    starts = _offsets(np.array([len(source) for source in sources]))
    objects = _offsets(np.array([len(column.labels) for column in columns]))
    names = [name for column in columns for name in column.names]
    if len(set(names)) < len(names):
        names = [f"{i}/{name}" for i, column in enumerate(columns) for name in column.names]

    def place(index: int) -> tuple[Source, int]:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        return sources[which], index - int(starts[which])

    def read_image(index: int) -> bytes:
        source, inner = place(index)
        return source.read_image(inner)

    def locate(index: int) -> str:
        source, inner = place(index)
        return source.locate(inner)

    different = {id(source.problems): source.problems for source in sources}
    problems = sources[0].problems
    if len(different) > 1:
        problems = Problems(problems.policy)
        problems.found = [error for each in different.values() for error in each.found]
    return Source(
        Annotations(
            names,
            np.concatenate([column.sizes for column in columns]),
            np.concatenate(
                [np.zeros(1, np.int64)]
                + [c.offsets[1:] + start for c, start in zip(columns, objects[:-1], strict=True)]
            ),
            *(np.concatenate([column[i] for column in columns]) for i in (3, 4, 5)),
        ),
        sources[0].classes,
        read_image=read_image,
        locate=locate,
        problems=problems,
        files=[file for source in sources for file in source.files],
    )


def source_of_objects(
    *,
    names: Sequence[str],
    sizes: Int[np.ndarray, "N 2"],
    object_counts: Int[np.ndarray, "N"],
    written: Float[np.ndarray, "M 4"],
    boxes: Float[np.ndarray, "M 4"],
    labels: Int[np.ndarray, "M"],
    difficult: Bool[np.ndarray, "M"],
    classes: Sequence[str],
    read_image: Callable[[int], bytes],
    locate: Callable[[int], str],
    problems: Problems,
    locate_object: Callable[[int, int], str],
    label_text: Callable[[int], str],
    box_text: Callable[[int], str] | None = None,
    files: Sequence[str] = (),
    unread: Sequence[int] = (),
) -> Source:
    """Check the objects of all images at once and build the source.

    `written` are the corners xmin, ymin, xmax, ymax in the format's own unit, `boxes` the same as
    fractions of the image; NaN if the file had no number. `labels` are class ids, -1 for a class
    that is not in `classes`; `label_text(k)` is the class of object k as written, `box_text(k)` its
    corners (None: as numbers). `locate_object(i, number)` names an object of image i, from 1;
    `unread` are the images of objects that are not among these, because they could not be read. An
    image whose boxes are all unusable is left out too. A set whose images have sizes, but whose
    boxes all look like fractions of the image sides, is refused whatever the policy.
    """
    offsets = _offsets(object_counts)
    image = np.repeat(np.arange(len(names)), object_counts)
    with np.errstate(invalid="ignore"):
        unreadable = ~np.isfinite(written).all(axis=1)
        inside = np.clip(boxes, 0, 1).astype(np.float32)
        swapped = (written[:, 2:] <= written[:, :2]).any(axis=1)
        tolerance = TOLERATED_PIXELS_OUTSIDE / np.maximum(np.tile(sizes[image][:, ::-1], 2), 1)
        tolerance[sizes[image][:, 0] == 0] = TOLERATED_PART_OUTSIDE
        # A rounding error of the division must not turn a tolerated pixel into a mistake.
        beyond = np.maximum(-boxes, boxes - 1) - tolerance * (1 + 1e-6)
        outside = ~unreadable & ~swapped & (beyond > 0).any(axis=1)
        # A box may lie in the tolerated strip outside, or be too thin for float32.
        vanished = (inside[:, 2:] <= inside[:, :2]).any(axis=1)
        flat = ~unreadable & ~outside & (swapped | vanished)
    unknown = (labels < 0) | (labels >= len(classes))

    def box_of(k: int) -> str:
        corners = ", ".join(f"{corner:g}" for corner in written[k].tolist())
        return f"box {f'({corners})' if box_text is None else box_text(k)}"

    def complaint(k: int) -> DataError:
        where = locate_object(int(image[k]), k - int(offsets[image[k]]) + 1)
        if unreadable[k]:
            problem = f"{box_of(k)} is unreadable, expected four numbers xmin, ymin, xmax, ymax"
            return DataError(codes.BOX_UNREADABLE, where, problem, _FIX)
        if flat[k]:
            problem = f"{box_of(k)} has no area in the image, expected xmin < xmax and ymin < ymax"
            return DataError(codes.BOX_WITHOUT_AREA, where, problem, _FIX)
        if outside[k]:
            height, width = sizes[image[k]].tolist()
            beyond = np.maximum(-boxes[k], boxes[k] - 1)
            if height:
                far = f"{(beyond * [width, height, width, height]).max():.4g} pixels"
                frame = f" of {width} x {height} pixels"
            else:
                far, frame = f"{beyond.max():.4g} of the image side", ""
            problem = f"{box_of(k)} is {far} outside, expected a box inside the image{frame}"
            return DataError(codes.BOX_OUTSIDE, where, problem, _FIX)
        return DataError(
            codes.UNKNOWN_CLASS,
            where,
            f"unknown class {label_text(k)!r}, expected one of {', '.join(classes[:100])}",
            "Correct it, or add it to config.data.classes (other commands: --classes)",
        )

    readable = np.flatnonzero(~unreadable & ~flat & ~outside)
    sides = np.tile(sizes[image[readable]][:, ::-1], 2)
    if sizes.all() and look_normalised(boxes[readable] * sides):
        k = int(readable[0])
        problem = (
            f"{box_of(k)} and all others of the set end within {NORMALISED_BOXES_END:g} pixels"
        )
        problem += ": they look like fractions of the image sides, expected pixels"
        fix = "Multiply them by the width and the height of their images"
        where = locate_object(int(image[k]), k - int(offsets[image[k]]) + 1)
        raise DataError(codes.BOXES_NORMALISED, where, problem, fix)
    bad = unreadable | flat | outside | unknown
    for k in np.flatnonzero(bad).tolist():
        problems(complaint(k))

    good = ~bad
    counts = np.bincount(image[good], minlength=len(names))
    # An image without its boxes would train its objects as background. That is right for objects
    # of unknown classes only.
    broken = np.bincount(image[unreadable | flat | outside], minlength=len(names))
    broken += np.bincount(np.asarray(unread, int), minlength=len(names))
    lost = (broken > 0) & (counts == 0)
    for i in np.flatnonzero(lost).tolist():
        problem = f"none of its {broken[i]} boxes can be used, so the image is left out"
        problems(DataError(codes.NO_BOX_LEFT, locate(i), problem, "Correct its boxes"))
    source = Source(
        Annotations(
            names,
            np.asarray(sizes, np.int32),
            _offsets(counts),
            inside[good],
            labels[good].astype(np.int32),
            np.asarray(difficult[good], bool),
        ),
        classes,
        read_image=read_image,
        locate=locate,
        problems=problems,
        files=files,
    )
    return source.take(np.flatnonzero(~lost)) if lost.any() else source


def look_normalised(boxes: Float[np.ndarray, "M 4"]) -> bool:
    """Whether boxes (xyxy, expected in pixels) all lie in the range of normalised boxes."""
    return len(boxes) > 0 and bool(boxes[:, 2:].max() <= NORMALISED_BOXES_END)


def check_not_empty(source: Source, where: str) -> Source:
    """Return the source; a `DataError` if it has no image, or no class is known."""
    if not len(source) or not source.classes:
        problem = f"{len(source)} images and no object, expected at least one image with an object"
        if examples := source.problems.examples():
            problem += f"; left out: {'; '.join(examples)}"
        fix = "Use another split, correct its annotations, or give config.data.classes"
        raise DataError(codes.SPLIT_EMPTY, where, problem, fix)
    return source


def class_ids(names: Sequence[str], classes: Sequence[str]) -> Int[np.ndarray, "M"]:
    """The ids of class names; -1 for a name that is not among the classes."""
    ids = {name: number for number, name in enumerate(classes)}
    return np.array([ids.get(name, -1) for name in names], np.int64)


def names_are_numbers(classes: Sequence[str]) -> bool:
    """Whether classes are "0", "1", ..., the class names in formats without names."""
    return list(classes) == [str(number) for number in range(len(classes))]


def _offsets(counts: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N+1"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
