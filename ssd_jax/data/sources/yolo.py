"""YOLO: `data.yaml` with class names and splits, and a text file of boxes for each image.

The format: docs.ultralytics.com/datasets/detect. A line of a text file is a class id with the
centre, width and height of a box, or with the corners of an outline, in fractions of the image.
"""

import itertools
import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from ssd_jax.data import codes
from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    names_are_numbers,
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
from ssd_jax.files import files_below, listed

SUFFIXES = (".yaml", ".yml")
# Ultralytics reads them all. Those that this program does not are refused, not overlooked.
_SUFFIXES = (*IMAGE_SUFFIXES, ".avif", ".bmp", ".dng", ".heic", ".jp2", ".mpo", ".tif", ".tiff",
             ".webp")  # fmt: skip
_NO_SPLITS = ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels")
_KEYS = re.compile(r"\b(names|nc)\b['\"]?\s*:")
# A list of a million images has less.
_MAX_LIST_BYTES = 2**28


class _Object(NamedTuple):
    image: int
    line: int
    class_id: int
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    text: str


def find_yaml(place: pathlib.Path) -> pathlib.Path | None:
    """The YAML file of a data set: `place` itself, or the one in this folder; None if it has none.

    In a folder with several, `data.yaml` or else `dataset.yaml`.
    """
    if place.suffix.lower() in SUFFIXES and place.is_file():
        return place
    files = (*listed(place, "*.yaml"), *listed(place, "*.yml"))
    found = [path for path in files if path.is_file() and _KEYS.search(_head(path))]
    if len(found) == 1:
        return found[0]
    return next((p for stem in ("data", "dataset") for p in found if p.stem == stem), None)


def _head(path: pathlib.Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(2**20)


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
    exist here is ignored, and so is a `../` in front of what lies beside the file, as in Roboflow's
    exports. The text file of an image is in the folder `labels` in place of `images`, or beside the
    image. An image without one has no objects, but at least one image must have one. If `classes`
    are given, names are matched; without names, a class id is an index into them.
    """
    problems = problems or Problems()
    path = pathlib.Path(path)
    described = _read_yaml(path)
    names = _class_names(described, path)
    if classes and names_are_numbers(tuple(names.values())):
        names = dict(enumerate(classes))
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
        box_text=lambda k: shown(objects[k].text),
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
    pairs = list(listed.items() if isinstance(listed, dict) else enumerate(_as_list(listed)))
    names = {whole_number(number): name for number, name in pairs}
    ids_are_good = None not in names and len(names) == len(pairs) > 0 and min(names) >= 0
    if not ids_are_good or not all(map(_is_name, names.values())):
        raise unreadable(str(path), "'names' is not a list of class names, and no map from ids")
    problem = None
    if twice := next((name for name, n in Counter(names.values()).items() if n > 1), None):
        problem = f"two classes are named {shown(twice)}, expected different names"
    elif count is not None and count != len(names):
        problem = f"'nc' is {count}, but there are {len(names)} names"
    if problem:
        raise DataError(codes.CLASS_NAMES_DISAGREE, str(path), problem, "Correct the names")
    return dict(sorted(names.items()))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not set(value) & set("\0\r\n")


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
    root, note = path.parent, ""
    if isinstance(stated := described.get("path"), str):
        place = root / os.path.expanduser(stated)
        if _exists(place):
            root = place
        else:
            note = f", and its path, {shown(stated)}, which does not exist here"
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
            place = _existing(entry, path, root, note)
            for image, where in _images_at(place, path, root, problems):
                reference = pathlib.PurePath(os.path.relpath(image, root)).as_posix()
                if reference in images:
                    problems(_listed_twice(where, reference))
                images.setdefault(reference, image)
    return images


def _listed_twice(where: str, reference: str) -> DataError:
    problem = f"the image {shown(reference)} is there already, expected each image once"
    return DataError(codes.RECORD_TWICE, where, problem, "Remove it here or there")


def _existing(entry: Any, path: pathlib.Path, root: pathlib.Path, note: str) -> pathlib.Path:
    """The folder, list or image of a split; `note` is added to the error."""
    if not isinstance(entry, str) or not entry.strip():
        raise unreadable(str(path), "a split is no path, expected that of a folder or text file")
    own = path.parent
    # Roboflow writes the paths as seen from a folder beside the file, or from the one above.
    places = [own / entry.removeprefix("../")] if entry.startswith("../") else []
    places += [root / entry, own / entry]
    places += [own.parent / entry] if entry.partition("/")[0] == own.name else []
    place = next(filter(_exists, places), None)
    if place is None:
        problem = f"there is no such folder or file{_hint(entry)}; {path} names it{note}"
        raise DataError(codes.FOLDER_MISSING, str(root / entry), problem, "Correct the path")
    return place


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _hint(path: str) -> str:
    return " (folders are separated by /)" if "\\" in path else ""


def _images_at(
    place: pathlib.Path, path: pathlib.Path, root: pathlib.Path, problems: Problems
) -> Iterator[tuple[pathlib.Path, str]]:
    """The images at a place, which may be one itself, each with its place for messages."""
    if place.is_dir():
        images = (each for each in sorted(files_below(place)) if _is_image(each))
        yield from ((image, str(place)) for image in images)
        return
    if _is_image(place):
        yield place, str(path)
        return
    lines = _read_lines(place, max_bytes=_MAX_LIST_BYTES)
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line:
            continue
        where = f"{place}, line {number}"
        # CVAT and Darknet write the paths as seen from a folder above, data.
        names = dict.fromkeys((line, line.removeprefix("data/")))
        folders = dict.fromkeys((place.parent, root, path.parent))
        places = (folder / name for name in names for folder in folders)
        image = next((each for each in places if _exists(each) and each.is_file()), None)
        if image is None:
            problem = f"{where} names it, but there is no such file{_hint(line)}"
            problems(image_missing(shown(line), problem))
        else:
            yield image, where


def _is_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def labels_without_image(images: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The text files in the folders of those of some images that belong to no image there.

    Folders with both are left out, because not all of their text files have to be annotations.
    """
    labels = ((_label_file(image), image) for image in images)
    folders = {(label.parent, image.parent) for label, image in labels if label}
    return [
        path
        for own, beside in sorted(folders)
        if own != beside
        for stems in [{each.stem for each in beside.iterdir() if _is_image(each)}]
        for path in listed(own, "*.txt")
        # Labelling programs write a list of the classes there.
        if path.stem not in stems and path.name != "classes.txt"
    ]


def _label_file(image: pathlib.Path) -> pathlib.Path | None:
    """The text file of an image, if it exists; also where links in the image's path lead."""
    places = itertools.chain(_label_places(image), _linked_label_places(image))
    return next((place for place in places if place.is_file()), None)


def _linked_label_places(image: pathlib.Path) -> Iterator[pathlib.Path]:
    if (real := image.resolve()) != image.absolute():
        yield from _label_places(real)


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
            lines = _read_lines(label)
        except DataError as error:
            problems(error)
            unread.append(image)
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                class_id, corners = _read_line(line, f"{label}, line {number}", keypoints)
                objects.append(_Object(image, number, class_id, corners, line.strip()))
            except DataError as error:
                problems(error)
                unread.append(image)
    return objects, unread


def _read_lines(path: pathlib.Path, **limit: int) -> list[str]:
    return read_bytes(path, **limit).decode("utf-8-sig", errors="replace").splitlines()


def _read_line(line: str, where: str, keypoints: bool) -> tuple[int, tuple[float, ...]]:
    """The class id and the corners of an object; behind its box may be its keypoints."""
    first, *rest = map(_number, line.split())
    if not first.is_integer() or abs(first) > MAX_CLASSES:
        raise unreadable(where, f"the class id is {shown(line.split()[0])}, expected a number")
    if not all(map(math.isfinite, rest)):
        problem = f"{shown(line.strip())} is unreadable, expected numbers such as 0.5"
        raise DataError(codes.BOX_UNREADABLE, where, problem, "Correct the line")
    if len(rest) == 4 or (keypoints and len(rest) > 4):
        x, y, width, height = rest[:4]
        return int(first), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(rest) < 6 or len(rest) % 2:
        problem = f"{len(rest)} numbers follow the class id, expected x, y, width and height, or "
        raise unreadable(where, problem + "at least three corners of an outline")
    xs, ys = rest[::2], rest[1::2]
    return int(first), (min(xs), min(ys), max(xs), max(ys))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
