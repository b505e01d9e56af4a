"""The doctor's findings from annotations, folders and indices; no image is opened here."""

import itertools
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ssd_jax.data import codes
from ssd_jax.data.sources.base import Annotations, Source
from ssd_jax.data.sources.recordio import not_indexed
from ssd_jax.data.sources.voc import IMAGE_SUFFIXES
from ssd_jax.data.sources.yolo import labels_without_image
from ssd_jax.errors import DataError
from ssd_jax.files import listed

# As a fraction of the image's width or height: 3 of 300 pixels, less than half a cell of the
# finest feature map.
TINY_SIDE = 0.01
# An object that no anchor overlaps this well is still matched to its best anchor; if there are
# many, the anchors do not fit the data.
REACHING_IOU = 0.5
TOLERATED_UNREACHED = 0.25
# Gives the share to within 1 to 2 %, in about a second for 24,564 anchors.
MEASURED_OBJECTS = 3000
# Numbers in a RecordIO label: the header (its own width and the object width), and per object the
# class id and four corners.
LABEL_HEADER, LABEL_OBJECT = 2, 5


class Finding(NamedTuple):
    """Something wrong or odd, under a stable code.

    `where` names the file, record and object; `problem` says what was found and what was expected,
    `fix` what to do. `image` is its index in the source, or None if the finding is not about one
    image.
    """

    code: str
    where: str
    problem: str
    fix: str
    image: int | None = None

    @property
    def message(self) -> str:
        """The problem and the fix, as sentences."""
        return f"{self.problem}. {self.fix}"

    @property
    def severity(self) -> str:
        """`error`: cannot be used, or spoils a measurement. `warning`: may be intended."""
        return "warning" if self.code in codes.WARNINGS else "error"

    @property
    def error(self) -> DataError:
        """The finding as an exception."""
        return DataError(self.code, self.where, self.problem, self.fix)

    @classmethod
    def of(cls, error: DataError, image: int | None = None) -> "Finding":
        """The finding that an exception reports."""
        return cls(error.code, error.where, error.problem, error.fix, image)


class Reach(NamedTuple):
    """The highest IoU of any anchor with each of some objects of a set."""

    objects: Int[np.ndarray, "K"]
    best: Float[np.ndarray, "K"]

    @property
    def unreached(self) -> float:
        """The share of objects that no anchor overlaps with an IoU of REACHING_IOU."""
        return float(np.mean(self.best < REACHING_IOU)) if len(self.best) else 0.0


def annotation_findings(
    source: Source,
    *,
    reach: Reach | None = None,
    label_width: int | None = None,
) -> list[Finding]:
    """Findings about names, boxes, classes and counts; `reach` is the result of `best_ious`."""
    return [
        *_names_twice(source),
        *_boxes_twice(source),
        *_paddings(source, label_width),
        *_classes(source),
        *_sizes(source, reach),
    ]


def index_findings(source: Source) -> list[Finding]:
    """Findings about records that are missing from the indices of RecordIO files."""
    pairs = itertools.pairwise(source.files)  # an index follows its file
    errors = (not_indexed(*pair) for pair in pairs if pair[1].endswith(".idx"))
    return [Finding.of(error) for error in errors if error is not None]


def folder_findings(root: pathlib.Path) -> list[Finding]:
    """Images without annotations, and the reverse, in VOC folders under `root`, listed or not."""
    found = []
    depths = ("", "*/", "*/*/")
    for images in sorted({each for depth in depths for each in root.glob(f"{depth}JPEGImages")}):
        paths = [path for path in listed(images, "*") if path.suffix.lower() in IMAGE_SUFFIXES]
        annotations = {path.stem: path for path in listed(images.parent, "Annotations/*.xml")}
        first: dict[str, pathlib.Path] = {}
        for path in paths:
            if path.stem not in annotations:
                problem = "the image has no annotation, expected an XML file of the same name"
                fix = "Write it (without objects if it shows none), or remove the image"
                found.append(Finding(codes.IMAGE_NOT_ANNOTATED, str(path), problem, fix))
            if path.stem in first:
                problem = f"the same id as {first[path.stem].name}, expected one image per id"
                fix = "Rename or remove one of them"
                found.append(Finding(codes.NAME_TWICE, str(path), problem, fix))
            first[path.stem] = path
        for stem in sorted(annotations.keys() - first.keys()):
            where = str(annotations[stem])
            found.append(_without_image(where, images.name))
    return found


def yolo_findings(source: Source) -> list[Finding]:
    """Text files without an image, in the folders of those that belong to the images of a set."""
    images = [pathlib.Path(source.locate(index)) for index in range(len(source))]
    return [_without_image(str(path), "images") for path in labels_without_image(images)]


def _without_image(where: str, images: str) -> Finding:
    problem = f"the annotation has no image, expected one of the same name in {images}"
    fix = "Add the image, or remove the annotation"
    return Finding(codes.ANNOTATION_WITHOUT_IMAGE, where, problem, fix)


def best_ious(annotations: Annotations, anchors: Float[np.ndarray, "A 4"]) -> Reach:
    """The highest IoU of each object; at most MEASURED_OBJECTS are measured, evenly spread."""
    count = len(annotations.labels)
    objects = np.unique(np.linspace(0, count - 1, min(count, MEASURED_OBJECTS)).astype(np.int64))
    areas = np.prod(anchors[:, 2:] - anchors[:, :2], axis=1)
    best = np.zeros(len(objects), np.float32)
    for k, (x0, y0, x1, y1) in enumerate(annotations.boxes[objects].tolist()):
        shared = np.minimum(anchors[:, 2], x1) - np.maximum(anchors[:, 0], x0)
        height = np.minimum(anchors[:, 3], y1) - np.maximum(anchors[:, 1], y0)
        shared = np.maximum(shared, 0) * np.maximum(height, 0)
        best[k] = np.max(shared / (areas + (x1 - x0) * (y1 - y0) - shared))
    return Reach(objects, best)


def boxes_twice(annotations: Annotations) -> tuple[Bool[np.ndarray, "M"], Bool[np.ndarray, "M"]]:
    """Objects with the same box as an earlier one of their image: (any class, the same class)."""
    rows = np.column_stack([annotations.image_of_object, annotations.boxes])
    return _repeated(rows), _repeated(np.column_stack([rows, annotations.labels]))


def _repeated(rows: Float[np.ndarray, "M k"]) -> Bool[np.ndarray, "M"]:
    repeated = np.ones(len(rows), bool)
    repeated[np.unique(rows, axis=0, return_index=True)[1]] = False
    return repeated


def _names_twice(source: Source) -> Iterator[Finding]:
    """Names that a file system without case or with other Unicode forms cannot tell apart."""
    seen: dict[str, int] = {}
    for image, name in enumerate(source.names):
        first = seen.setdefault(_plain(name), image)
        if first != image:
            problem = f"the name {name!r} differs from {source.names[first]!r} only in case or "
            problem += "Unicode form, expected names that stay different when copied"
            where = source.locate(image)
            yield Finding(codes.NAME_TWICE, where, problem, "Rename one of them", image)


def _boxes_twice(source: Source) -> Iterator[Finding]:
    columns = source.annotations
    any_class, same_class = boxes_twice(columns)
    for k in np.flatnonzero(any_class).tolist():
        image = int(columns.image_of_object[k])
        corners = ", ".join(f"{corner:.4g}" for corner in columns.boxes[k].tolist())
        of_class = "the same class" if same_class[k] else "another class"
        problem = f"box ({corners}), in fractions of the image's width and height, appears twice, "
        problem += f"for {of_class}, expected each object once"
        where = _object_place(source, k)
        yield Finding(codes.BOX_TWICE, where, problem, "Remove one of them", image)


def _paddings(source: Source, label_width: int | None) -> Iterator[Finding]:
    counts = source.object_counts
    if label_width is not None:
        widths = LABEL_HEADER + LABEL_OBJECT * counts
        for image in np.flatnonzero(widths > label_width).tolist():
            problem = f"{counts[image]} objects need a label width of {widths[image]}"
            problem += f", expected at most {label_width}"
            fix = f"Set label_width to {widths.max()} or more, or leave it out"
            yield Finding(codes.LABEL_WIDTH_SMALL, source.locate(image), problem, fix)
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        problem = f"{len(empty):,} of {len(source):,} images have no object, first "
        problem += _first_places(source, empty)
        fix = "Check that no annotation is missing: they are trained as background"
        yield Finding(codes.NO_OBJECTS, "all images", problem, fix)


def _classes(source: Source) -> Iterator[Finding]:
    counts = np.bincount(source.annotations.labels, minlength=len(source.classes))
    alike: dict[str, str] = {}
    for name, count in zip(source.classes, counts, strict=True):
        if not count:
            problem = f"no object of this class among {counts.sum():,}, expected at least one"
            fix = "Correct the list of classes, or the split"
            yield Finding(codes.CLASS_WITHOUT_OBJECTS, f"class {name!r}", problem, fix)
        other = alike.setdefault("".join(_plain(name).split()), name)
        if other != name:
            problem = f"differs from class {other!r} only in case or spaces"
            fix = "Give both the same name if they are one class"
            yield Finding(codes.CLASSES_ALIKE, f"class {name!r}", problem, fix)


def _sizes(source: Source, reach: Reach | None) -> Iterator[Finding]:
    columns = source.annotations
    count = len(columns.labels)
    tiny = np.flatnonzero((columns.boxes[:, 2:] - columns.boxes[:, :2]).min(axis=1) < TINY_SIDE)
    if len(tiny):
        problem = f"{len(tiny):,} of {count:,} objects are narrower or lower than {TINY_SIDE:.0%} "
        problem += f"of their image, first {_object_place(source, int(tiny[0]))}"
        fix = "A network of 300 pixels hardly sees them: "
        fix += "cut the images into tiles, or use a larger image_size"
        yield Finding(codes.TINY_OBJECTS, "all objects", problem, fix)
    if reach is not None and count:
        share = reach.unreached
        if share > TOLERATED_UNREACHED:
            worst = _object_place(source, int(reach.objects[np.argmin(reach.best)]))
            problem = f"{share:.0%} of the objects overlap no anchor with an IoU of "
            problem += f"{REACHING_IOU:g}, expected at most {TOLERATED_UNREACHED:.0%}; "
            problem += f"the worst is {worst}"
            fix = "Set anchors.scales, or a larger image_size"
            yield Finding(codes.UNREACHED_OBJECTS, "all objects", problem, fix)


def _object_place(source: Source, k: int) -> str:
    columns = source.annotations
    image = int(columns.image_of_object[k])
    number = k - int(columns.offsets[image]) + 1
    return f"{source.locate(image)}, object {number} ({source.classes[columns.labels[k]]})"


def _first_places(source: Source, images: Sequence[int]) -> str:
    places = [source.locate(image) for image in images[:3]]
    return ", ".join(places) + (", ..." if len(images) > 3 else "")


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
