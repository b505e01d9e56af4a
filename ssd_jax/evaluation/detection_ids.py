"""What the images and classes of detections are called, against those of the ground truth."""

import pathlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ssd_jax.data.sources.json_records import whole_number
from ssd_jax.errors import UserError, some_of
from ssd_jax.evaluation.coco import CocoObjects
from ssd_jax.evaluation.voc import GroundTruth


class Labelled(NamedTuple):
    """The ground truth of a data set, image by image; boxes are in the devkit's pixels.

    `image_ids` and `category_ids` are the numbers and names that files of detections may use for
    its images and classes. `image_sizes` are (height, width). `coco` is what a COCO file says more,
    and `file_numbers` are its images by the numbers that their files are called. `classes_found`:
    nobody listed the classes, they are those of the objects.
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
    """The places of images; a name of digits may be the number."""
    advice = "Give the data set that the detections were made on"
    return _look_up(written, labelled.image_ids, "image", path, advice)


def look_up_categories(
    written: Sequence[Any], labelled: Labelled, path: pathlib.Path
) -> Int[np.ndarray, "M"]:
    """The places of classes, as `look_up_images`."""
    return _look_up(written, labelled.category_ids, "category", path, advice_on_classes(labelled))


def advice_on_classes(labelled: Labelled) -> str:
    """What to do about a class that the ground truth has not."""
    advice = "Give the data set that the detections were made on"
    return advice if labelled.coco else f"{advice}, or all of its classes in order with --classes"


def warn_of_doubtful_ids(
    images: Sequence[Any], categories: Sequence[Any], labelled: Labelled, path: pathlib.Path
) -> None:
    """Tells on stderr of numbers that may mean other images or classes than they are taken for."""
    numbers = _whole_numbers(images)
    by_file, by_id = labelled.file_numbers, labelled.image_ids
    others = sorted(number for number in numbers if by_file.get(number) != by_id[number])
    if others and numbers <= by_file.keys():
        _warn(
            f"{path}: its image ids are taken for those of the ground truth, in which the id "
            f"{others[0]} is not that of the file called {others[0]}. If they are names as "
            "numbers, as `ssd-jax predict` has them without --annotations, give it the ground "
            "truth there"
        )
    if labelled.classes_found and _whole_numbers(categories):
        counted = [f"{number} {name}" for number, name in enumerate(labelled.classes[:100], 1)]
        _warn(
            f"{path}: its category ids are counted over the classes that were found in the ground "
            f"truth: {', '.join(counted)}. If it lacks one, give all in order with --classes"
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
    places = {}
    for key in dict.fromkeys(key if isinstance(key, str) else whole_number(key) for key in written):
        place = known.get(key)
        if place is None and isinstance(key, str) and key.isdecimal():
            place = known.get(whole_number(key))
        if place is None:
            # Each once: most have a number besides their name.
            names = {at: str(each) for each, at in known.items() if isinstance(each, type(key))}
            expected = list(names.values()) or [str(each) for each in known]
            raise UserError(
                f"{path}: a detection has the {what} {key!r}, which the ground truth has not; "
                f"expected one of {some_of(expected)}. {advice}"
            )
        places[key] = place
    keys = (key if isinstance(key, str) else whole_number(key) for key in written)
    return np.array([places[key] for key in keys], np.int64)
