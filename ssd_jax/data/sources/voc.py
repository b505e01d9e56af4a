"""PASCAL VOC folders: `Annotations/*.xml`, `ImageSets/Main/*.txt`, `JPEGImages/*`.

The devkit counts pixels from 1 and both corners of a box belong to it, so the box that covers a
whole image of W x H pixels is (1, 1, W, H), here normalised to (0, 0, 1, 1).
"""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException, ElementTree

from ssd_jax.data import codes
from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    source_of_objects,
)
from ssd_jax.data.sources.image_file import MAX_PIXELS_OF_A_SIDE, read_file
from ssd_jax.errors import DataError, UserError, some_of, what_is_there
from ssd_jax.files import listed
from ssd_jax.types import VOC_OFFSET

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# A thousand objects of 1,000 bytes each are 1 MB.
MAX_ANNOTATION_BYTES = 8 * 2**20


def open_voc(
    root: str | os.PathLike,
    image_sets: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    problems: Problems | None = None,
) -> Source:
    """Open the images of one or more image sets, in the order of their files.

    `image_sets` are names of files in `ImageSets/Main`: `("train",)` if `root` itself holds
    `Annotations`, and preceded by the folder if `root` is a devkit:
    `("VOC2007/trainval", "VOC2012/trainval")`. `classes` default to the names found in the
    annotations, sorted.
    """
    problems = problems or Problems()
    root = pathlib.Path(root)
    image_sets = (image_sets,) if isinstance(image_sets, str) else tuple(image_sets)
    if not image_sets:
        raise UserError(
            f"{root}: no image set was given (image_sets of the split in a config, or --split or "
            f"--against-split, or {root}@NAME). {_expected(root)}."
        )
    records, annotations = [], []
    for record in _list_records(root, image_sets, problems):
        try:
            annotations.append(_read(record.annotation))
        except DataError as error:
            problems(error)
        else:
            records.append(record)

    objects = [thing for annotation in annotations for thing in annotation.objects]
    class_names = [thing.class_name for thing in objects]
    found = not classes
    classes = tuple(sorted(set(class_names))) if found else tuple(classes)
    counts = np.array([len(annotation.objects) for annotation in annotations], np.int64)
    sizes = np.array([annotation.size for annotation in annotations], np.int32).reshape(-1, 2)
    written = np.array([thing.numbers for thing in objects], np.float64).reshape(-1, 4)
    sides = np.tile(np.repeat(sizes, counts, axis=0)[:, ::-1], 2)

    def locate_object(image: int, number: int) -> str:
        name = annotations[image].objects[number - 1].class_name
        return f"{records[image].annotation}, object {number} ({name})"

    def read_image(index: int) -> bytes:
        return read_file(records[index].image)

    source = source_of_objects(
        names=tuple(record.name for record in records),
        sizes=sizes,
        object_counts=counts,
        written=written,
        boxes=(written - VOC_OFFSET) / sides,
        labels=class_ids(class_names, classes),
        difficult=np.array([thing.difficult for thing in objects], bool),
        classes=classes,
        read_image=read_image,
        locate=lambda index: str(records[index].image),
        problems=problems,
        locate_object=locate_object,
        label_text=class_names.__getitem__,
        box_text=lambda k: f"({', '.join(objects[k].corners)})",
    )
    source.classes_found = found
    return check_not_empty(source, f"{root} {', '.join(image_sets)}")


class _Record(NamedTuple):
    name: str
    annotation: pathlib.Path
    image: pathlib.Path


class _Object(NamedTuple):
    class_name: str
    corners: tuple[str, ...]  # xmin, ymin, xmax, ymax as written
    numbers: tuple[float, ...]  # the same; NaN for anything that is not a number
    difficult: bool


class _Annotation(NamedTuple):
    size: tuple[int, int]
    objects: tuple[_Object, ...]


def _list_records(
    root: pathlib.Path, image_sets: Sequence[str], problems: Problems
) -> list[_Record]:
    records: dict[str, _Record] = {}
    images: dict[pathlib.Path, dict[str, pathlib.Path]] = {}
    for image_set in image_sets:
        prefix, _, split = image_set.rpartition("/")
        folder = root / prefix
        for image_id in _read_image_set(root, folder, image_set, split):
            name = f"{prefix}/{image_id}" if prefix else image_id
            if folder not in images:
                images[folder] = _images_by_id(folder / "JPEGImages")
            try:
                if name in records:
                    raise DataError(
                        codes.RECORD_TWICE,
                        f"{root} {', '.join(image_sets)}",
                        f"{name} is listed twice, expected each image once",
                        "Remove one of the lines or one of the image sets",
                    )
                records[name] = _record(name, image_id, folder, images[folder])
            except DataError as error:
                problems(error)
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
            f"the image set {image_set!r} does not exist",
            _expected(root),
        )
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise DataError(
            codes.SPLIT_EMPTY,
            str(path),
            "the file lists no image, expected one image id per line",
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
            "Write it (an image without objects needs one too), or correct the image set: an id is "
            "the name below JPEGImages, without suffix or flag",
        )
    image = images.get(image_id) or _image_in_subfolder(folder / "JPEGImages", image_id)
    if image is None:
        raise DataError(
            codes.IMAGE_MISSING,
            str(folder / "JPEGImages" / image_id),
            f"no image of that name, expected one that ends in {', '.join(IMAGE_SUFFIXES)}",
            "Add the image, or remove the id from the image set",
        )
    return _Record(name, annotation, image)


def _images_by_id(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise _folder_missing(folder)
    paths = [path for path in listed(folder, "*") if path.suffix.lower() in IMAGE_SUFFIXES]
    # The last image of an id overrides the others, so the preferred suffix comes last.
    paths.sort(key=lambda path: -IMAGE_SUFFIXES.index(path.suffix.lower()))
    return {path.stem: path for path in paths}


def _image_in_subfolder(folder: pathlib.Path, image_id: str) -> pathlib.Path | None:
    """The image of an id such as "camera1/7", as CVAT writes them."""
    if "/" not in image_id:
        return None
    suffixes = (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
    places = [folder / f"{image_id}{suffix}" for suffix in suffixes]
    return next((place for place in places if place.is_file()), None)


def _folder_missing(folder: pathlib.Path) -> DataError:
    return DataError(
        codes.FOLDER_MISSING,
        str(folder),
        f"the folder does not exist; {what_is_there(folder)}",
        "Give the folder that holds Annotations, ImageSets and JPEGImages, or VOC2007, VOC2012",
    )


def _expected(root: pathlib.Path) -> str:
    """Advice for a message: the image sets under a root, or how to write one if there is none."""
    paths = [
        path
        for depth in ("", "*/", "*/*/")
        for path in listed(root, f"{depth}ImageSets/Main/*.txt")
    ]
    if not paths:
        return (
            f"There are none in {root / 'ImageSets' / 'Main'}: write train.txt and val.txt there, "
            "with one image id per line, without the file suffix"
        )
    names = [(path.parents[2].relative_to(root) / path.stem).as_posix() for path in paths]
    return f"Name one or more of {some_of(names)}"


def _read(path: pathlib.Path) -> _Annotation:
    try:
        if (size := path.stat().st_size) > MAX_ANNOTATION_BYTES:
            raise DataError(
                codes.ANNOTATION_TOO_LARGE,
                str(path),
                f"{size:,} bytes, expected at most {MAX_ANNOTATION_BYTES:,}",
                "Check that it is an annotation",
            )
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, f"the file cannot be read ({error.strerror})") from error
    except DataError:  # which is a ValueError
        raise
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise _unreadable(path, f"the XML cannot be read ({error})") from error
    size = tuple(_positive_integer(root, f"size/{side}", path) for side in ("height", "width"))
    # Only the root's own children: the <part>s of a person have boxes too, but are not objects.
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
    corners = tuple(str(None if box is None else box.findtext(tag)).strip() for tag in tags)
    return _Object(name, corners, tuple(map(_number, corners)), difficult == "1")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _positive_integer(root: Element, tag: str, path: pathlib.Path) -> int:
    text = root.findtext(tag)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not (1 <= value <= MAX_PIXELS_OF_A_SIDE and value.is_integer()):
        raise _unreadable(path, f"<{tag}> is {text!r}, expected a whole number of pixels")
    return int(value)


def _unreadable(path: pathlib.Path, problem: str) -> DataError:
    return DataError(
        codes.ANNOTATION_UNREADABLE,
        str(path),
        problem,
        "Correct the file, or remove its id from the image set",
    )
