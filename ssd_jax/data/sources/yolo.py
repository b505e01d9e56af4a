"""YOLO: `data.yaml` with class names and splits, and a text file of boxes for each image.

The format: docs.ultralytics.com/datasets/detect. A line of a text file is a class id with the
centre, width and height of a box, or with the corners of an outline, in fractions of the image.
"""

import math
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from ssd_jax.data import codes
from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    source_of_objects,
)
from ssd_jax.data.sources.image_file import image_missing, read_file
from ssd_jax.data.sources.json_records import (
    read_bytes,
    short_names,
    shown,
    unreadable,
    whole_number,
)
from ssd_jax.data.sources.sagemaker_records import MAX_CLASSES
from ssd_jax.data.sources.voc import IMAGE_SUFFIXES
from ssd_jax.errors import DataError, UserError, some_of
from ssd_jax.files import files_below

# The file's name in the exports of Roboflow, CVAT and Ultralytics, and of FiftyOne.
FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SUFFIXES = (".yaml", ".yml")
# Those that YOLO reads and this program does not are images too: refused, not overlooked.
_SUFFIXES = (*IMAGE_SUFFIXES, ".bmp", ".tif", ".tiff", ".webp")
_NO_SPLITS = ("path", "names", "nc", "download")


class _Object(NamedTuple):
    image: int
    line: int
    class_id: int
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax; NaN if not numbers
    text: str


def open_yolo(
    path: str | os.PathLike,
    split: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    problems: Problems | None = None,
) -> Source:
    """Open the images of splits, such as `("train",)`, that the YAML file `path` lists.

    A split is a folder, a text file with the path of an image on each line, or a list of these.
    They are relative to `path` of the file, and this to the file itself; a `path` that does not
    exist here, and `../` as in Roboflow's exports, are ignored. The text file of an image is in the
    folder `labels` in place of `images`, or beside the image. An image without one has no objects,
    but at least one image must have one. If `classes` are given, names are matched.
    """
    problems = problems or Problems()
    path = pathlib.Path(path)
    described = _read_yaml(path)
    names = _class_names(described, path)
    split = (split,) if isinstance(split, str) else tuple(split)
    images = _list_images(described, path, split, problems)
    labels = [_label_file(image) for image in images.values()]
    if images and not any(labels):
        raise _no_labels(next(iter(images.values())), path, split)
    objects, unread = _read_objects(labels, "kpt_shape" in described, problems)

    found, paths = list(images), list(images.values())
    classes = tuple(classes or names.values())
    class_names = [names.get(thing.class_id, f"class id {thing.class_id}") for thing in objects]
    counts = np.bincount([thing.image for thing in objects], minlength=len(found)).astype(np.int64)
    starts = np.cumsum(counts) - counts
    written = np.array([thing.corners for thing in objects], np.float64).reshape(-1, 4)

    def locate_object(image: int, number: int) -> str:
        return f"{labels[image]}, line {objects[int(starts[image]) + number - 1].line}"

    source = source_of_objects(
        names=short_names(found),
        sizes=np.zeros((len(found), 2), np.int32),
        object_counts=counts,
        written=written,
        boxes=written,
        labels=class_ids(class_names, classes),
        difficult=np.zeros(len(objects), bool),
        classes=classes,
        read_image=lambda index: read_file(paths[index]),
        locate=lambda index: str(paths[index]),
        problems=problems,
        locate_object=locate_object,
        label_text=class_names.__getitem__,
        box_text=lambda k: objects[k].text,
        unread=unread,
    )
    return check_not_empty(source, f"{path} {', '.join(split)}")


def _read_yaml(path: pathlib.Path) -> dict[str, Any]:
    """The content of a file; all scalars as text, because YAML takes a class `no` for False."""
    data = read_bytes(path)
    try:
        value = yaml.load(data.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise unreadable(str(path), f"the YAML cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise unreadable(str(path), "there are no keys in it, expected at least 'names'")
    return {key: each for key, each in value.items() if each not in ("", "~", "null")}


def _class_names(described: dict[str, Any], path: pathlib.Path) -> dict[int, str]:
    """The name of each class id, sorted by id; numbers if only `nc`, their count, is given."""
    listed, count = described.get("names"), whole_number(described.get("nc"))
    if listed is None and count is not None:
        listed = [str(number) for number in range(min(count, MAX_CLASSES))]
    pairs = listed.items() if isinstance(listed, dict) else enumerate(_as_list(listed))
    names = {whole_number(number): name for number, name in pairs}
    if not names or None in names or not all(isinstance(n, str) and n for n in names.values()):
        raise unreadable(str(path), "'names' is not a list of class names, and no map from ids")
    problem = None
    if twice := next((name for name, n in Counter(names.values()).items() if n > 1), None):
        problem = f"two classes are named {shown(twice)}, expected different names"
    elif count is not None and count != len(names):
        problem = f"'nc' is {count}, but there are {len(names)} names"
    if problem:
        raise DataError(codes.CLASS_NAMES_DISAGREE, str(path), problem, "Correct the names")
    return dict(sorted(names.items()))


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else []


def _list_images(
    described: dict[str, Any], path: pathlib.Path, split: Sequence[str], problems: Problems
) -> dict[str, pathlib.Path]:
    """The images of splits by their paths relative to the data set."""
    splits = {
        name: [value] if isinstance(value, str) else value
        for name, value in described.items()
        if name not in _NO_SPLITS and isinstance(value, (str, list))
    }
    if not split:
        raise UserError(
            f"{path}: no split was given (image_sets of the split in a config, or --split or "
            f"--against-split, or {path}@NAME). Name one or more of {some_of(list(splits))}."
        )
    root = path.parent
    if isinstance(stated := described.get("path"), str):
        place = root / pathlib.Path(stated).expanduser()
        root = place if place.is_dir() else root
    images: dict[str, pathlib.Path] = {}
    for name in split:
        if name not in splits:
            raise DataError(
                codes.SPLIT_MISSING,
                str(path),
                f"there is no split {name!r}",
                f"Name one or more of {some_of(list(splits))}",
            )
        for entry in splits[name]:
            place = _existing(entry, path, root)
            for image, where in _images_at(place, path, root, problems):
                reference = pathlib.PurePath(os.path.relpath(image, root)).as_posix()
                if reference in images:
                    problems(_listed_twice(where, reference))
                images.setdefault(reference, image)
    return images


def _listed_twice(where: str, reference: str) -> DataError:
    problem = f"the image {shown(reference)} is there already, expected each image once"
    return DataError(codes.RECORD_TWICE, where, problem, "Remove it here or there")


def _existing(entry: Any, path: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """The folder or list of images of a split."""
    if not isinstance(entry, str) or not entry.strip():
        raise unreadable(str(path), "a split is no path, expected that of a folder or text file")
    places = [root / entry, path.parent / entry]
    # Roboflow writes the paths as seen from one of the folders.
    places += [path.parent / entry.removeprefix("../")]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        problem = f"there is no such folder or file; {path} names it"
        raise DataError(codes.FOLDER_MISSING, str(places[0]), problem, "Correct the path")
    return place


def _images_at(
    place: pathlib.Path, path: pathlib.Path, root: pathlib.Path, problems: Problems
) -> Iterator[tuple[pathlib.Path, str]]:
    """The images in a folder or in a list, each with its place for messages."""
    if place.is_dir():
        for image in sorted(files_below(place)):
            if image.suffix.lower() in _SUFFIXES:
                yield image, str(place)
        return
    lines = place.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        where = f"{place}, line {number}"
        places = [folder / line for folder in (place.parent, root, path.parent)]
        try:
            image = next((each for each in places if each.is_file()), None)
        except (OSError, ValueError):  # a name that is too long, or has a zero byte
            image = None
        if image is None:
            problems(image_missing(shown(line), f"{where} names it, but there is no such file"))
        else:
            yield image, where


def _label_file(image: pathlib.Path) -> pathlib.Path | None:
    """The text file of an image, if it exists."""
    return next((place for place in _label_places(image) if place.is_file()), None)


def _label_places(image: pathlib.Path) -> list[pathlib.Path]:
    beside = image.with_suffix(".txt")
    parts = beside.parent.parts
    if "images" not in parts:
        return [beside]
    last = len(parts) - 1 - parts[::-1].index("images")
    return [pathlib.Path(*parts[:last], "labels", *parts[last + 1 :], beside.name), beside]


def _no_labels(image: pathlib.Path, path: pathlib.Path, split: Sequence[str]) -> DataError:
    expected = " or ".join(map(str, _label_places(image)))
    return DataError(
        codes.ANNOTATION_MISSING,
        f"{path} {', '.join(split)}",
        f"no image has a text file of boxes, expected for the first one {expected}",
        "Add the text files; only an image without objects needs none",
    )


def _read_objects(
    labels: Sequence[pathlib.Path | None], keypoints: bool, problems: Problems
) -> tuple[list[_Object], list[int]]:
    """The objects of all images in their order, and the images of lines that cannot be read."""
    objects, unread = [], []
    for image, label in enumerate(labels):
        if label is None:
            continue
        try:
            lines = read_bytes(label).decode("utf-8-sig", errors="replace").splitlines()
        except DataError as error:
            problems(error)
            unread.append(image)
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                class_id, corners = _read_line(line, f"{label}, line {number}", keypoints)
                objects.append(_Object(image, number, class_id, corners, shown(line.strip())))
            except DataError as error:
                problems(error)
                unread.append(image)
    return objects, unread


def _read_line(line: str, where: str, keypoints: bool) -> tuple[int, tuple[float, ...]]:
    """The class id and the corners of an object; behind its box may be its keypoints."""
    first, *rest = map(_number, line.split())
    if not first.is_integer():
        raise unreadable(where, f"the class id is {shown(line.split()[0])}, expected a number")
    if len(rest) == 4 or (keypoints and len(rest) > 4):
        x, y, width, height = rest[:4]
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    elif len(rest) >= 6 and len(rest) % 2 == 0:
        xs, ys = rest[::2], rest[1::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    else:
        problem = f"{len(rest)} numbers follow the class id, expected x, y, width and height, or "
        raise unreadable(where, problem + "at least three corners of an outline")
    readable = all(map(math.isfinite, rest))
    return int(first), corners if readable else (math.nan,) * 4


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
