"""What the doctor can say from annotations, folders and indices: no image is opened here."""

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
from ssd_jax.errors import DataError
from ssd_jax.files import listed

# Of the image's width or height: 3 of 300 pixels, less than half a cell of the finest feature map.
TINY_SIDE = 0.01
# An object that no default box reaches is still matched to its best one; too many are a mismatch.
REACHING_IOU = 0.5
TOLERATED_UNREACHED = 0.25
# Enough for a share that is right within 1 to 2 %, in about a second for 24,564 default boxes.
MEASURED_OBJECTS = 3000
# Of a RecordIO label: header width, object width; then class id and four corners an object.
LABEL_HEADER, LABEL_OBJECT = 2, 5


class Finding(NamedTuple):
    """Something wrong or odd, under a stable code.

    `where` names the file, record and object; `problem` says what was got and what was expected,
    `fix` what to do. `image` is the index in the source, None where no image of it is to blame.
    """

    code: str
    where: str
    problem: str
    fix: str
    image: int | None = None

    @property
    def message(self) -> str:
        """The whole of it, in sentences."""
        return f"{self.problem}. {self.fix}"

    @property
    def severity(self) -> str:
        """`error`: cannot be used, or spoils a measurement. `warning`: look whether it is meant."""
        return "warning" if self.code in codes.WARNINGS else "error"

    @property
    def error(self) -> DataError:
        """The same as an exception."""
        return DataError(self.code, self.where, self.problem, self.fix)

    @classmethod
    def of(cls, error: DataError, image: int | None = None) -> "Finding":
        """The same as a finding."""
        return cls(error.code, error.where, error.problem, error.fix, image)


class Reach(NamedTuple):
    """The best IoU that any default box has with an object, of some objects of a set."""

    objects: Int[np.ndarray, "K"]
    best: Float[np.ndarray, "K"]

    @property
    def unreached(self) -> float:
        """The share of objects that no default box reaches at REACHING_IOU."""
        return float(np.mean(self.best < REACHING_IOU)) if len(self.best) else 0.0


def annotation_findings(
    source: Source,
    *,
    reach: Reach | None = None,
    label_width: int | None = None,
) -> list[Finding]:
    """Findings about names, boxes, classes and counts; `reach` is what `best_ious` gave."""
    return [
        *_names_twice(source),
        *_boxes_twice(source),
        *_paddings(source, label_width),
        *_classes(source),
        *_sizes(source, reach),
    ]


def index_findings(source: Source) -> list[Finding]:
    """Records that the indices of RecordIO files leave out."""
    pairs = itertools.pairwise(source.files)  # an index follows its file
    errors = (not_indexed(*pair) for pair in pairs if pair[1].endswith(".idx"))
    return [Finding.of(error) for error in errors if error is not None]


def folder_findings(root: pathlib.Path) -> list[Finding]:
    """What lies in the VOC folders under `root` without its counterpart, listed or not."""
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
                problem = f"the same id as {first[path.stem].name}, expected one image for an id"
                fix = "Rename or remove one of them"
                found.append(Finding(codes.NAME_TWICE, str(path), problem, fix))
            first[path.stem] = path
        for stem in sorted(annotations.keys() - first.keys()):
            where = str(annotations[stem])
            problem = f"the annotation has no image, expected one of its name in {images.name}"
            fix = "Add the image, or remove the annotation"
            found.append(Finding(codes.ANNOTATION_WITHOUT_IMAGE, where, problem, fix))
    return found


def best_ious(annotations: Annotations, anchors: Float[np.ndarray, "A 4"]) -> Reach:
    """The best IoU of each object; of many objects MEASURED_OBJECTS are taken, evenly spread."""
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
    """Objects whose box an earlier one of their image has: (any class, the same class)."""
    rows = np.column_stack([annotations.image_of_object, annotations.boxes])
    return _repeated(rows), _repeated(np.column_stack([rows, annotations.labels]))


def _repeated(rows: Float[np.ndarray, "M k"]) -> Bool[np.ndarray, "M"]:
    repeated = np.ones(len(rows), bool)
    repeated[np.unique(rows, axis=0, return_index=True)[1]] = False
    return repeated


def _names_twice(source: Source) -> Iterator[Finding]:
    """Names that are one name on a file system without case, or in another Unicode form."""
    seen: dict[str, int] = {}
    for image, name in enumerate(source.names):
        first = seen.setdefault(_plain(name), image)
        if first != image:
            problem = f"the name {name!r} differs from {source.names[first]!r} in case or Unicode "
            problem += "form only, expected names that stay apart when copied"
            where = source.locate(image)
            yield Finding(codes.NAME_TWICE, where, problem, "Rename one of them", image)


def _boxes_twice(source: Source) -> Iterator[Finding]:
    columns = source.annotations
    any_class, same_class = boxes_twice(columns)
    for k in np.flatnonzero(any_class).tolist():
        image = int(columns.image_of_object[k])
        corners = ", ".join(f"{corner:.4g}" for corner in columns.boxes[k].tolist())
        of_class = "the same class" if same_class[k] else "another class"
        problem = f"box ({corners}) of the image's width and height stands twice, for {of_class}"
        problem += ", expected each object once"
        where = _object_place(source, k)
        yield Finding(codes.BOX_TWICE, where, problem, "Remove one of them", image)


def _paddings(source: Source, label_width: int | None) -> Iterator[Finding]:
    counts = source.object_counts
    if label_width is not None:
        widths = LABEL_HEADER + LABEL_OBJECT * counts
        for image in np.flatnonzero(widths > label_width).tolist():
            problem = f"{counts[image]} objects need a label width of {widths[image]}"
            problem += f", expected at most {label_width}"
            fix = f"Set label_width to {widths.max()} or more, or leave it"
            yield Finding(codes.LABEL_WIDTH_SMALL, source.locate(image), problem, fix)
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        problem = f"{len(empty):,} of {len(source):,} images have no object, first "
        problem += _first_places(source, empty)
        fix = "They are trained as background: see that nothing was forgotten in them"
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
            problem = f"differs from class {other!r} in case or spaces only"
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
        fix += "cut the images into tiles, or use a larger network"
        yield Finding(codes.TINY_OBJECTS, "all objects", problem, fix)
    if reach is not None and count:
        share = reach.unreached
        if share > TOLERATED_UNREACHED:
            worst = _object_place(source, int(reach.objects[np.argmin(reach.best)]))
            problem = f"{share:.0%} of the objects reach no IoU of {REACHING_IOU:g} with any "
            problem += f"default box, expected at most {TOLERATED_UNREACHED:.0%}; worst is {worst}"
            fix = "Use a larger network, or other scales and ratios of default boxes"
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
