"""PASCAL VOC folders: `Annotations/*.xml`, `ImageSets/Main/*.txt`, `JPEGImages/*`.

The devkit counts pixels from 1 and both corners of a box belong to it, so the box that covers a
whole image of W x H pixels is (1, 1, W, H), here normalised to (0, 0, 1, 1).
"""

import collections
import hashlib
import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException, ElementTree
from jaxtyping import Int

from ssd_jax.data import codes
from ssd_jax.errors import DataError, UserError
from ssd_jax.types import Example

# Some tools count from 0 or round outwards; a coordinate farther out than this is a mistake.
TOLERATED_PIXELS_OUTSIDE = 1.0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class VocSource:
    """The images of one or several image sets, in the order of their files.

    `image_sets` are names as in `ImageSets/Main`, after the folder where `root` is a devkit:
    `("VOC2007/trainval", "VOC2012/trainval")`, or `("train",)` where `root` itself holds
    `Annotations`. Without `classes` they are the names found in the annotations, sorted.

    Every annotation is read and checked here; the bytes of an image are read at `source[i]`.
    `bad_boxes="drop"` leaves out boxes that are unreadable, outside their image or without area
    (xmax <= xmin or ymax <= ymin) and counts them by code in `dropped`.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        image_sets: Sequence[str],
        *,
        classes: Sequence[str] | None = None,
        bad_boxes: str = "error",
        keep_empty: bool = True,
    ):
        if bad_boxes not in ("error", "drop"):
            raise UserError(f"bad_boxes is {bad_boxes!r}: expected 'error' or 'drop'")
        root = pathlib.Path(root)
        image_sets = (image_sets,) if isinstance(image_sets, str) else tuple(image_sets)
        if not image_sets:
            raise UserError(f"image_sets is empty: expected one or more of {_image_sets(root)}")
        files = _list_records(root, image_sets)
        annotations = [_read(record.annotation) for record in files]
        self.dropped: collections.Counter[str] = collections.Counter()
        found = {thing.class_name for annotation in annotations for thing in annotation.objects}
        self.classes = tuple(classes) if classes else tuple(sorted(found))

        self._records = []
        for record, annotation in zip(files, annotations, strict=True):
            example = self._checked(record, annotation, drop=bad_boxes == "drop")
            if keep_empty or len(example.labels):
                self._records.append((record.image, example))
        if not self._records or not self.classes:
            raise DataError(
                codes.SPLIT_EMPTY,
                f"{root} {', '.join(image_sets)}",
                "no image has an object, expected at least one that does",
                "Use another image set, or give the classes and keep the empty images",
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        path, example = self._records[index]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                codes.IMAGE_MISSING,
                str(path),
                f"the image was there when training began and cannot be read now ({error})",
                "Put it back",
            ) from error
        return example._replace(name=str(path), image=data)

    @property
    def names(self) -> tuple[str, ...]:
        """Of every image: its id, after its folder where the root is a devkit."""
        return tuple(example.name for _, example in self._records)

    @property
    def object_counts(self) -> Int[np.ndarray, "N"]:
        """Objects of every image, known without reading it."""
        return np.array([len(example.labels) for _, example in self._records])

    @property
    def fingerprint(self) -> str:
        """A hash of names, sizes, boxes, labels and flags: equal for equal annotations."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for _, example in self._records:
            digest.update(repr((example.name, example.size)).encode())
            for column in (example.boxes, example.labels, example.difficult):
                digest.update(column.tobytes())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        """One line for the log: images, objects a class, images without objects, dropped boxes."""
        labels = np.concatenate([example.labels for _, example in self._records])
        counts = np.bincount(labels, minlength=len(self.classes))
        classes = ", ".join(f"{n} {c:,}" for n, c in zip(self.classes, counts, strict=True))
        empty = int(np.sum(self.object_counts == 0))
        text = f"{len(self):,} images, {len(labels):,} objects ({classes})"
        text += f", {empty:,} images without objects"
        if self.dropped:
            text += ", dropped boxes: " + ", ".join(
                f"{count} {code}" for code, count in sorted(self.dropped.items())
            )
        return text

    def _checked(self, record: "_Record", annotation: "_Annotation", *, drop: bool) -> Example:
        boxes, labels, difficult = [], [], []
        for number, thing in enumerate(annotation.objects, start=1):
            where = f"{record.annotation}, object {number} ({thing.class_name})"
            try:
                box = _normalised_box(thing.corners, annotation.size, where)
            except DataError as error:
                if not drop:
                    raise
                self.dropped[error.code] += 1
                continue
            boxes.append(box)
            labels.append(self._class_id(thing.class_name, where))
            difficult.append(thing.difficult)
        return Example(
            name=record.name,
            image=b"",
            size=annotation.size,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.array(labels, np.int32),
            difficult=np.array(difficult, bool),
        )

    def _class_id(self, name: str, where: str) -> int:
        if name not in self.classes:
            raise DataError(
                codes.UNKNOWN_CLASS,
                where,
                f"unknown class {name!r}, expected one of {', '.join(self.classes)}",
                "Correct the name, or add it to the classes",
            )
        return self.classes.index(name)


class _Record(NamedTuple):
    name: str
    annotation: pathlib.Path
    image: pathlib.Path


class _Object(NamedTuple):
    class_name: str
    corners: tuple[str | None, ...]  # xmin, ymin, xmax, ymax as written
    difficult: bool


class _Annotation(NamedTuple):
    size: tuple[int, int]
    objects: tuple[_Object, ...]


def _list_records(root: pathlib.Path, image_sets: Sequence[str]) -> list[_Record]:
    records: dict[str, _Record] = {}
    images: dict[pathlib.Path, dict[str, pathlib.Path]] = {}
    for image_set in image_sets:
        prefix, _, split = image_set.rpartition("/")
        folder = root / prefix
        for image_id in _read_image_set(root, folder, image_set, split):
            name = f"{prefix}/{image_id}" if prefix else image_id
            if name in records:
                raise DataError(
                    codes.RECORD_TWICE,
                    f"{root} {', '.join(image_sets)}",
                    f"{name} is listed twice, expected each image once",
                    "Remove one of the lines or one of the image sets",
                )
            if folder not in images:
                images[folder] = _images_by_id(folder / "JPEGImages")
            records[name] = _record(name, image_id, folder, images[folder])
    return list(records.values())


def _read_image_set(
    root: pathlib.Path, folder: pathlib.Path, image_set: str, split: str
) -> list[str]:
    if not root.is_dir():
        raise _folder_missing(root)
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        raise DataError(
            codes.SPLIT_MISSING,
            str(path),
            f"the image set {image_set!r} does not exist, expected one of {_image_sets(root)}",
            "Correct its name, or write one image id a line into that file",
        )
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise DataError(
            codes.SPLIT_EMPTY,
            str(path),
            "the file lists no image, expected one image id a line",
            "Write the ids into it, or use another image set",
        )
    return ids


def _record(
    name: str, image_id: str, folder: pathlib.Path, images: dict[str, pathlib.Path]
) -> _Record:
    annotation = folder / "Annotations" / f"{image_id}.xml"
    if not annotation.is_file():
        raise DataError(
            codes.ANNOTATION_MISSING,
            str(annotation),
            "the file does not exist, expected one annotation for each id of the image set",
            "Write it (an image without objects needs one too), or take the id off the image set",
        )
    if image_id not in images:
        raise DataError(
            codes.IMAGE_MISSING,
            str(folder / "JPEGImages" / image_id),
            f"no image of that name, expected one that ends in {', '.join(IMAGE_SUFFIXES)}",
            "Add the image, or take the id off the image set",
        )
    return _Record(name, annotation, images[image_id])


def _images_by_id(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise _folder_missing(folder)
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    # The last one of an id stays, so the preferred suffix comes last.
    paths.sort(key=lambda path: -IMAGE_SUFFIXES.index(path.suffix.lower()))
    return {path.stem: path for path in paths}


def _folder_missing(folder: pathlib.Path) -> DataError:
    parent = next(parent for parent in folder.absolute().parents if parent.is_dir())
    return DataError(
        codes.FOLDER_MISSING,
        str(folder),
        f"the folder does not exist; {parent} holds "
        + _some_of([path.name for path in parent.iterdir()]),
        "Give the folder that holds Annotations, ImageSets and JPEGImages, or VOC2007, VOC2012",
    )


def _image_sets(root: pathlib.Path) -> str:
    """The image sets under a root, as one writes them."""
    paths = [
        path for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}ImageSets/Main/*.txt")
    ]
    return _some_of([(path.parents[2].relative_to(root) / path.stem).as_posix() for path in paths])


def _some_of(names: Sequence[str], limit: int = 12) -> str:
    # Shortest first: `train` stands before VOC's `aeroplane_train`.
    shown = sorted(names, key=lambda name: (len(name), name))[:limit]
    return (", ".join(shown) or "nothing") + (", ..." if len(names) > limit else "")


def _read(path: pathlib.Path) -> _Annotation:
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise _unreadable(path, f"the XML cannot be read ({error})") from error
    size = tuple(_positive_integer(root, f"size/{side}", path) for side in ("height", "width"))
    # Only the root's own children: the <part>s of a person have boxes too, but are no objects.
    return _Annotation(size, tuple(_object(element, path) for element in root.findall("object")))


def _object(element: Element, path: pathlib.Path) -> _Object:
    name = element.findtext("name", "").strip()
    if not name:
        raise _unreadable(path, "an <object> has no <name>")
    difficult = element.findtext("difficult", "").strip() or "0"
    if difficult not in ("0", "1"):
        raise _unreadable(path, f"<difficult> is {difficult!r}, expected 0 or 1")
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = element.find("bndbox")
    corners = tuple(None if box is None else box.findtext(tag) for tag in tags)
    return _Object(name, corners, difficult == "1")


def _positive_integer(root: Element, tag: str, path: pathlib.Path) -> int:
    text = root.findtext(tag)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (value >= 1 and value.is_integer()):
        raise _unreadable(path, f"<{tag}> is {text!r}, expected the image's size in whole pixels")
    return int(value)


def _unreadable(path: pathlib.Path, problem: str) -> DataError:
    return DataError(
        codes.ANNOTATION_UNREADABLE,
        str(path),
        problem,
        "Correct the file, or take its id off the image set",
    )


def _normalised_box(
    corners: tuple[str | None, ...], size: tuple[int, int], where: str
) -> tuple[float, float, float, float]:
    """Check the corners as written (pixels from 1, inclusive) and normalise them."""
    height, width = size
    fix = "Correct the box, or set bad_boxes to 'drop' to train without such boxes"
    written = f"box ({', '.join(str(corner).strip() for corner in corners)})"
    try:
        xmin, ymin, xmax, ymax = (float(corner) for corner in corners)
        finite = all(map(math.isfinite, (xmin, ymin, xmax, ymax)))
    except (TypeError, ValueError):
        finite = False
    if not finite:
        problem = f"{written} is unreadable, expected four numbers xmin, ymin, xmax, ymax"
        raise DataError(codes.BOX_UNREADABLE, where, problem, fix)
    if xmax <= xmin or ymax <= ymin:
        problem = f"{written} has no area, expected xmin < xmax and ymin < ymax"
        raise DataError(codes.BOX_WITHOUT_AREA, where, problem, fix)
    outside = max(1 - xmin, 1 - ymin, xmax - width, ymax - height)
    if outside > TOLERATED_PIXELS_OUTSIDE:
        problem = f"{written} is {outside:g} pixels outside, expected 1..{width} x 1..{height}"
        raise DataError(codes.BOX_OUTSIDE, where, problem, fix)
    return (
        max(xmin - 1, 0) / width,
        max(ymin - 1, 0) / height,
        min(xmax, width) / width,
        min(ymax, height) / height,
    )
