"""Detections of any detector, from files, and the ground truth of any data set.

Detections are COCO results (a JSON list of `image_id`, `category_id`, `bbox`, `score`;
cocodataset.org/#format-results) or VOC devkit results (a folder of files NAME_det_SET_CLASS.txt,
one line per detection: image, score, xmin, ymin, xmax, ymax; devkit documentation, section 7.2).
"""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems, Source, class_ids, look_normalised
from ssd_jax.data.sources.coco import MAX_BYTES, read_categories, read_images, read_objects
from ssd_jax.data.sources.image_file import image_size
from ssd_jax.data.sources.json_records import (
    corner_column,
    member,
    read_json,
    shown,
    unreadable,
)
from ssd_jax.errors import UserError, some_of
from ssd_jax.evaluation.coco import CocoObjects
from ssd_jax.evaluation.detection_ids import (
    Labelled,
    advice_on_classes,
    look_up_categories,
    look_up_images,
    warn_of_doubtful_ids,
)
from ssd_jax.evaluation.metrics import annotated_pixels
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes
from ssd_jax.files import listed
from ssd_jax.types import NORMALISED_BOXES_END, VOC_OFFSET

_WRONG = (KeyError, TypeError, ValueError, OverflowError)
_RESULT = "expected image_id, category_id, bbox (left, top, width, height) and score"


def read_ground_truth(
    location: str, *, split: Sequence[str] = (), classes: Sequence[str] = ()
) -> Labelled:
    """The ground truth of any data set that `open_data` knows; the arguments are the same.

    A local COCO file needs no images: only its annotations are read, with their areas, crowds and
    ids.
    """
    path = pathlib.Path(location)
    if path.suffix.lower() == ".json" and path.is_file():
        if split or classes:
            raise UserError(
                f"{path}: got splits or classes, expected neither: a COCO file has its own"
            )
        labelled = _of_coco_file(path)
        _check_pixels(path, np.concatenate([truth.boxes for truth in labelled.ground_truths]))
        return labelled
    return _of_source(open_data(location, split=split, classes=classes or None))


def read_detections(path: str | os.PathLike, labelled: Labelled) -> list[ScoredBoxes]:
    """The detections in a folder (VOC) or a JSON file (COCO), for each image of the ground truth.

    An image or class that the ground truth does not have is a `UserError`, and so are boxes that
    all look normalised.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder. Correct the path")
    if path.is_dir():
        columns = _read_devkit(path, labelled)
    elif path.suffix.lower() == ".json":
        columns = _read_results(path, labelled)
    else:
        raise UserError(
            f"{path}: got neither a folder nor a JSON file; expected the folder of the VOC "
            "devkit's result files, or a JSON file of COCO results"
        )
    images, boxes, scores, labels = columns
    _check_pixels(path, boxes)
    rows = _by_image(images, (boxes, scores, labels), len(labelled.ground_truths))
    return [ScoredBoxes(*row) for row in rows]


def _check_pixels(path: pathlib.Path, boxes: Float[np.ndarray, "M 4"]) -> None:
    if look_normalised(boxes):
        raise UserError(
            f"{path}: all {len(boxes):,} boxes end within {NORMALISED_BOXES_END:g} pixels, like "
            "fractions of the image sides; expected pixels. Multiply them by the width and the "
            "height of their images"
        )


# ---- ground truth ----


def _of_source(source: Source) -> Labelled:
    columns = source.annotations
    sizes = columns.sizes.copy()
    for index in np.flatnonzero(sizes[:, 0] == 0).tolist():
        sizes[index] = image_size(source.read_image(index), source.locate(index))
    starts = columns.offsets[1:-1]
    parts = (np.split(column, starts) for column in columns[3:])
    truths = [
        GroundTruth(annotated_pixels(boxes, size), labels, difficult)
        for size, boxes, labels, difficult in zip(sizes, *parts, strict=True)
    ]
    # The form that `ssd-jax convert` writes.
    categories = {name: label for label, name in enumerate(source.classes)}
    categories |= {label: label - 1 for label in range(1, len(source.classes) + 1)}
    return Labelled(
        source.classes,
        truths,
        sizes,
        _ids_of_names(source.names),
        categories,
        classes_found=source.classes_found,
    )


def _ids_of_names(names: Sequence[str]) -> dict[int | str, int]:
    """The names, their parts after the last slash, and these as numbers, each if it is unique."""
    owners: dict[int | str, list[int]] = collections.defaultdict(list)
    for index, name in enumerate(names):
        short = name.rpartition("/")[2]
        for key in (short, *([int(short)] if short.isdecimal() else [])):
            owners[key].append(index)
    only = {key: indices[0] for key, indices in owners.items() if len(indices) == 1}
    return only | {name: index for index, name in enumerate(names)}


def _of_coco_file(path: pathlib.Path) -> Labelled:
    where, problems = str(path), Problems()
    value = read_json(path, max_bytes=MAX_BYTES, drop=("segmentation",))
    categories = read_categories(value, where)
    names = tuple(categories.values())
    images, index_of_id = read_images(member(value, "images", list, where), None, where, problems)
    for key, found in (("categories", categories), ("images", images)):
        if not found:
            raise unreadable(where, f"{key!r} is empty, expected at least one")
    # The order in which pycocotools ranks detections with equal scores.
    ids = {image_id: place for place, image_id in enumerate(sorted(index_of_id))}
    images = [images[index_of_id[image_id]] for image_id in ids]
    place_of = {index_of_id[image_id]: place for image_id, place in ids.items()}
    objects, _ = read_objects(
        member(value, "annotations", list, where), index_of_id, categories, where, problems
    )
    boxes = corner_column([thing.box for thing in objects])
    labels = class_ids([thing.class_name for thing in objects], names)
    difficult = np.array([thing.difficult for thing in objects], bool)
    areas = np.array([thing.area for thing in objects], np.float64)
    crowds = np.array([thing.crowd for thing in objects], bool)
    for wrong, expected in (
        (~np.isfinite(boxes).all(axis=1), "'bbox' is not valid, expected four numbers"),
        (labels < 0, "'category_id' is unknown, expected one that the file lists"),
        (~np.isfinite(areas), "'area' is not valid, expected a number of pixels"),
    ):
        if wrong.any():
            raise unreadable(f"{where}, annotations[{objects[wrong.argmax()].number}]", expected)
    of_image = np.array([place_of[thing.image] for thing in objects], np.int64)
    columns = (boxes + VOC_OFFSET, labels, difficult, areas, crowds)
    rows = list(_by_image(of_image, columns, len(images)))
    files = [pathlib.PurePosixPath(image.reference) for image in images]
    stems = _ids_of_names([str(file).removesuffix(file.suffix) for file in files])
    return Labelled(
        classes=names,
        ground_truths=[GroundTruth(*row[:3]) for row in rows],
        image_sizes=np.array([image.size for image in images], np.int64),
        image_ids={
            **{stem: index for stem, index in stems.items() if isinstance(stem, str)},
            **{str(file): index for index, file in enumerate(files)},
            **ids,
        },
        category_ids={
            **{name: label for label, name in enumerate(names)},
            **{class_id: label for label, class_id in enumerate(categories)},
        },
        coco=[CocoObjects(*row[3:]) for row in rows],
        file_numbers={stem: index for stem, index in stems.items() if isinstance(stem, int)},
    )


def _by_image(
    images: Int[np.ndarray, "M"], columns: Iterable[np.ndarray], count: int
) -> Iterable[tuple[np.ndarray, ...]]:
    """The columns of each of `count` images, with rows in their original order."""
    order = np.argsort(images, kind="stable")
    ends = np.cumsum(np.bincount(images, minlength=count))[:-1]
    return zip(*(np.split(column[order], ends) for column in columns), strict=True)


# ---- detections ----


def _read_results(path: pathlib.Path, labelled: Labelled):
    try:
        records = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the JSON cannot be read ({error}). Give COCO results") from error
    if not isinstance(records, list):
        raise UserError(
            f"{path}: got {shown(records)}, expected a list of detections. "
            "Give COCO results, not annotations"
        )
    try:
        images = [each["image_id"] for each in records]
        labels = [each["category_id"] for each in records]
        boxes = np.array([each["bbox"] for each in records], np.float64)
        scores = np.array([each["score"] for each in records], np.float64)
        if records and (boxes.shape[1:], scores.ndim) != ((4,), 1):
            raise ValueError
        boxes = boxes.reshape(len(records), 4)
    except _WRONG:
        number = next((i for i, each in enumerate(records) if not _is_result(each)), 0)
        raise UserError(
            f"{path}, detection {number}: got {shown(records[number])}; {_RESULT}"
        ) from None
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UserError(f"{path}: a box or a score is not finite; expected numbers")
    if (negative := (boxes[:, 2:] < 0).any(axis=1)).any():
        number = int(negative.argmax())
        raise UserError(
            f"{path}, detection {number}: got the bbox {shown(records[number]['bbox'])}, expected "
            "left, top, width and height, the last two not negative. Do not write corners"
        )
    boxes[:, 2:] += boxes[:, :2]
    columns = look_up_images(images, labelled, path), look_up_categories(labels, labelled, path)
    warn_of_doubtful_ids(images, labels, labelled, path)
    return columns[0], boxes + VOC_OFFSET, scores, columns[1]


def _is_result(value: Any) -> bool:
    try:
        _ = value["image_id"], value["category_id"]
        return np.array([*value["bbox"], value["score"]], np.float64).shape == (5,)
    except _WRONG:
        return False


def _read_devkit(folder: pathlib.Path, labelled: Labelled):
    rows = {"image": [], "label": [], "numbers": []}
    for path, label in _class_files(folder, labelled):
        for number, line in enumerate(_lines(path), 1):
            if not (fields := line.split()):
                continue
            try:
                score, *corners = map(float, fields[1:])
                if len(corners) != 4 or not np.isfinite([score, *corners]).all():
                    raise ValueError
            except ValueError:
                raise UserError(
                    f"{path}:{number}: got {line[:80]!r}, expected an image, its score and "
                    "xmin ymin xmax ymax"
                ) from None
            if corners[2] < corners[0] or corners[3] < corners[1]:
                raise UserError(
                    f"{path}:{number}: got {line[:80]!r}, expected xmin ymin xmax ymax with "
                    "xmin <= xmax and ymin <= ymax. Write corners, not sizes, in this order"
                )
            rows["image"].append(fields[0])
            rows["label"].append(label)
            rows["numbers"].append((score, *corners))
    numbers = np.array(rows["numbers"], np.float64).reshape(-1, 5)
    return (
        look_up_images(rows["image"], labelled, folder),
        numbers[:, 1:],
        numbers[:, 0],
        np.array(rows["label"], np.int64),
    )


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()


def _class_files(folder: pathlib.Path, labelled: Labelled) -> Iterable[tuple[pathlib.Path, int]]:
    """The file of each class; the part of the name before the class is the same for all."""
    classes = labelled.classes
    files = {path.stem: path for path in listed(folder, "*.txt")}
    found: dict[str, list[str]] = {name: [] for name in classes}
    for stem in files:
        ends = [name for name in classes if stem == name or stem.endswith(f"_{name}")]
        if not ends:
            raise UserError(
                f"{files[stem]}: the name does not end with a class of the ground truth; expected "
                f"one of {some_of(classes)}. {advice_on_classes(labelled)}"
            )
        # "hot_dog" also ends with "dog".
        found[max(ends, key=len)].append(stem)
    wrong = [name for name, stems in found.items() if len(stems) != 1]
    if wrong:
        raise UserError(
            f"{folder}: got {len(found[wrong[0]])} files for class {wrong[0]}, expected one per "
            f"class, such as comp4_det_test_{wrong[0]}.txt. Write an empty one for no detections"
        )
    return [(files[stems[0]], label) for label, stems in enumerate(found.values())]
