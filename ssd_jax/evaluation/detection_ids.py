"""The image and class names of detections, matched to those of the ground truth."""

import pathlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ssd_jax.data.sources.json_records import shown, whole_number
from ssd_jax.errors import UserError, some_of
from ssd_jax.evaluation.coco import CocoObjects
from ssd_jax.evaluation.voc import GroundTruth


class Labelled(NamedTuple):
    """The ground truth of a data set, image by image; boxes are in the devkit's pixels.

    `image_ids` and `category_ids` are the numbers and names that files of detections may use for
    its images and classes. `image_sizes` are (height, width). `coco` has the additional content of
    a COCO file, and `file_numbers` its images by the numbers that name their files.
    `classes_found` is true if no class list was given and the classes are those of the objects.
    """

    classes: tuple[str, ...]
    ground_truths: list[GroundTruth]
    image_sizes: Int[np.ndarray, "I 2"]
    image_ids: dict[int | str, int]
    category_ids: dict[int | str, int]
    coco: list[CocoObjects] | None = None
    file_numbers: Mapping[int, int] = types.MappingProxyType({})
    classes_found: bool = False


def look_up_images(
    written: Sequence[Any], labelled: Labelled, path: pathlib.Path
) -> Int[np.ndarray, "M"]:
    """The indices of images; a name of digits may be the number."""
    advice = "Give the data set that the detections were made on"
    return _look_up(written, labelled.image_ids, "image", path, advice)


def look_up_categories(
    written: Sequence[Any], labelled: Labelled, path: pathlib.Path
) -> Int[np.ndarray, "M"]:
    """The indices of classes, found as in `look_up_images`."""
    return _look_up(written, labelled.category_ids, "category", path, advice_on_classes(labelled))


def advice_on_classes(labelled: Labelled) -> str:
    """Advice about a class that is not in the ground truth."""
    advice = "Give the data set that the detections were made on"
    return (
        advice if labelled.coco else f"{advice}, or list all of its classes in order with --classes"
    )


def warn_of_doubtful_ids(
    images: Sequence[Any], categories: Sequence[Any], labelled: Labelled, path: pathlib.Path
) -> None:
    """Warn on stderr about numbers that may mean other images or classes than assumed."""
    numbers = _whole_numbers(images)
    by_file, by_id = labelled.file_numbers, labelled.image_ids
    others = sorted(number for number in numbers if by_file.get(number) != by_id[number])
    if others and numbers <= by_file.keys():
        _warn(
            f"{path}: its image ids are read as ids of the ground truth, in which the id "
            f"{others[0]} is not that of the file called {others[0]}. If they are file names as "
            "numbers, as `ssd-jax predict` writes them without --annotations, give it the ground "
            "truth there"
        )
    if labelled.classes_found and _whole_numbers(categories):
        counted = [f"{number} {name}" for number, name in enumerate(labelled.classes[:100], 1)]
        _warn(
            f"{path}: its category ids are read as numbers of the classes found in the ground "
            f"truth: {', '.join(counted)}. If a class is missing, list all in order with --classes"
        )


def _whole_numbers(written: Sequence[Any]) -> set[int]:
    numbers = (whole_number(key) for key in set(written) if not isinstance(key, str))
    return {number for number in numbers if number is not None}


def _warn(message: str) -> None:
    print(f"warning: {message}.", file=sys.stderr)


def _look_up(
    written: Sequence[Any],
    known: dict[int | str, int],
    what: str,
    path: pathlib.Path,
    advice: str,
) -> Int[np.ndarray, "M"]:
    keys = [key if isinstance(key, str) else whole_number(key) for key in written]
    places = {}
    for key, said in zip(keys, written, strict=True):
        if key in places:
            continue
        place = known.get(key)
        if place is None and isinstance(key, str) and key.isdecimal():
            place = known.get(whole_number(key))
        if place is None:
            raise UserError(
                f"{path}: a detection has the {what} {shown(said)}, which is not in the ground "
                f"truth; expected one of {some_of(_each_once(known, type(key)))}. {advice}"
            )
        places[key] = place
    return np.array([places[key] for key in keys], np.int64)


def _each_once(known: dict[int | str, int], kind: type) -> list[str]:
    """What a file may call the images or classes: most have a number as well as a name."""
    alike = {at: str(each) for each, at in known.items() if isinstance(each, kind)}
    return list((alike or {at: str(each) for each, at in known.items()}).values())
