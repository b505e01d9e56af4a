"""COCO's object detection format: one JSON file for all images (cocodataset.org/#format-data).

Boxes are `[left, top, width, height]` in pixels from 0; `iscrowd` objects are `difficult`.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd_jax.data import codes
from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    source_of_objects,
)
from ssd_jax.data.sources.image_file import read_file
from ssd_jax.data.sources.json_records import (
    LARGEST_AREA,
    Box,
    bounded,
    box,
    check_folder,
    corner_column,
    flag,
    listed_twice,
    member,
    path_inside,
    read_json,
    short_names,
    shown,
    side,
    text,
    unreadable,
    whole_number,
)
from ssd_jax.errors import DataError

# The largest public file, LVIS's training set, is 1.1 GB.
MAX_BYTES = 2**31
# So many images decide which folder is meant.
PROBED = 20


class CocoImage(NamedTuple):
    """An image of the list; `path` is None if image files were not searched for."""

    reference: str
    path: pathlib.Path | None
    size: tuple[int, int]


class CocoAnnotation(NamedTuple):
    """An object: its `number` in the list, from 0, and the index of its `image` among those used.

    `area` is the one in the file, else that of the box, in pixels; NaN if it is not a number.
    """

    number: int
    image: int
    class_name: str
    box: Box
    difficult: bool
    area: float
    crowd: bool


def open_coco(
    path: str | os.PathLike,
    images: str | os.PathLike | None = None,
    *,
    classes: Sequence[str] | None = None,
    problems: Problems | None = None,
) -> Source:
    """Open the images of a COCO file, in its order; its categories become classes 0, 1, ...

    `file_name` is relative to the folder `images`. The default is the one of these folders that
    holds most of the first images, and of several the first: one with the file's name, `NAME` for
    `instances_NAME.json` as in COCO, the file's own folder, `images` in it; then the same in the
    folder above. If `classes` are given, categories are matched by name. An object with `ignore` is
    difficult too, as in VOC converted to this format.
    """
    problems = problems or Problems()
    path = pathlib.Path(path)
    value = read_json(path, max_bytes=MAX_BYTES, drop=("segmentation",))
    categories = read_categories(value, str(path))
    listed = member(value, "images", list, str(path))
    folder = _image_folder(path, listed) if images is None else pathlib.Path(images)
    check_folder(folder)
    found, index_of_id = read_images(listed, folder, str(path), problems)
    objects, unread = read_objects(
        member(value, "annotations", list, str(path)), index_of_id, categories, str(path), problems
    )
    objects.sort(key=lambda thing: thing.image)

    classes = tuple(classes or categories.values())
    counts = np.bincount([thing.image for thing in objects], minlength=len(found)).astype(np.int64)
    starts = np.cumsum(counts) - counts
    sizes = np.array([image.size for image in found], np.int32).reshape(-1, 2)
    written = corner_column([thing.box for thing in objects])
    class_names = [thing.class_name for thing in objects]

    def locate_object(image: int, number: int) -> str:
        thing = objects[int(starts[image]) + number - 1]
        name = found[image].reference
        return f"{path}, annotations[{thing.number}] of {name}, object {number}"

    source = source_of_objects(
        names=short_names([image.reference for image in found]),
        sizes=sizes,
        object_counts=counts,
        written=written,
        boxes=written / np.tile(np.repeat(sizes, counts, axis=0)[:, ::-1], 2),
        labels=class_ids(class_names, classes),
        difficult=np.array([thing.difficult for thing in objects], bool),
        classes=classes,
        read_image=lambda index: read_file(found[index].path),
        locate=lambda index: str(found[index].path),
        problems=problems,
        locate_object=locate_object,
        label_text=class_names.__getitem__,
        box_text=lambda k: f"({objects[k].box.text})",
        unread=unread,
    )
    return check_not_empty(source, str(path))


def read_categories(value: Any, where: str) -> dict[int, str]:
    """The name of each category by its id, in the order of the file's content `value`.

    Roboflow's exports have an additional category that no annotation uses and that may have the
    name of a class. Of several ids with one name the one with annotations is used, or the last if
    none has any.
    """
    ids: dict[str, list[int]] = {}
    seen: set[int] = set()
    for number, item in enumerate(member(value, "categories", list, where)):
        place = f"{where}, categories[{number}]"
        name = text(item, "name", place).strip()
        class_id = whole_number(item.get("id"))
        if class_id is None or class_id in seen:
            problem = f"it is {shown(item)}, expected a unique id and a name"
            raise DataError(codes.CLASS_NAMES_DISAGREE, place, problem, "Correct the category")
        seen.add(class_id)
        ids.setdefault(name, []).append(class_id)
    used = _used_categories(value) if len(ids) < len(seen) else seen
    names = {}
    for name, same in ids.items():
        having = [class_id for class_id in same if class_id in used]
        if len(having) > 1:
            problem = f"the ids {', '.join(map(str, having))} are all called {name!r} and have "
            problem += "annotations, expected a different name for each"
            fix = "Give their annotations one of these ids, or rename the categories"
            raise DataError(codes.CLASS_NAMES_DISAGREE, f"{where}, categories", problem, fix)
        names[(having or same)[-1]] = name
    return names


def _used_categories(value: dict) -> set[int | None]:
    """The category ids that annotations use; their errors are reported when they are read."""
    listed = value.get("annotations")
    things = listed if isinstance(listed, list) else []
    return {whole_number(each.get("category_id")) for each in things if isinstance(each, dict)}


def _image_folder(path: pathlib.Path, listed: list) -> pathlib.Path:
    """The one of the usual folders that holds most of the first images in the list."""

    def holds(place: pathlib.Path, item: Any) -> bool:
        try:
            return bool(path_inside(place, text(item, "file_name", str(path)), str(path)))
        except DataError:
            return False

    # Names such as 1.jpg are in many folders, so one for this file alone comes first.
    places = [
        parent / name
        for parent in (path.parent, path.absolute().parent.parent)
        for name in (path.stem, path.stem.rpartition("_")[2], "", "images")
    ]
    found = [sum(holds(place, item) for item in listed[:PROBED]) for place in places]
    return places[found.index(max(found))] if any(found) else path.parent


def read_images(
    listed: list, folder: pathlib.Path | None, where: str, problems: Problems
) -> tuple[list[CocoImage], dict[int, int | None]]:
    """The images that can be used, and their index by image id (None for unusable ones).

    Without a folder image files need not exist, and two images with different ids may share one.
    """
    found: list[CocoImage] = []
    index_of_id: dict[int, int | None] = {}
    references: set[str] = set()
    for number, item in enumerate(listed):
        place = f"{where}, images[{number}]"
        image_id = whole_number(item.get("id")) if isinstance(item, dict) else None
        is_new = image_id not in index_of_id
        # Also if it cannot be used: then its objects are left out without another complaint.
        index_of_id.setdefault(image_id, None)
        try:
            written = text(item, "file_name", place)
            if image_id is None:
                problem = f"'id' is {shown(item.get('id'))}, expected a whole number"
                raise unreadable(place, problem)
            reference = str(pathlib.PurePosixPath(written))
            if not is_new or (folder is not None and reference in references):
                raise listed_twice(place, f"{reference} (id {image_id})")
            references.add(reference)
            size = (side(item, "height", place), side(item, "width", place))
            path = None if folder is None else path_inside(folder, reference, place)
            found.append(CocoImage(reference, path, size))
            index_of_id[image_id] = len(found) - 1
        except DataError as error:
            problems(error)
    index_of_id.pop(None, None)
    return found, index_of_id


def read_objects(
    listed: list,
    index_of_id: dict[int, int | None],
    categories: dict[int, str],
    where: str,
    problems: Problems,
) -> tuple[list[CocoAnnotation], list[int]]:
    """The objects of the images that can be used, and the images of objects that cannot be read."""
    objects, unread = [], []
    for number, item in enumerate(listed):
        place = f"{where}, annotations[{number}]"
        image_id = whole_number(item.get("image_id")) if isinstance(item, dict) else None
        image = index_of_id.get(image_id)
        try:
            sides = member(item, "bbox", list, place)
            if len(sides) != 4:
                raise unreadable(place, f"'bbox' is {shown(sides)}, expected four numbers")
            if image_id not in index_of_id:
                raise DataError(
                    codes.OBJECT_WITHOUT_IMAGE,
                    place,
                    f"'image_id' is {shown(item.get('image_id'))}, which no image has",
                    "Add the image to the list 'images', or remove the annotation",
                )
            crowd = flag(item, "iscrowd", place)
            difficult = crowd or flag(item, "ignore", place)
            if image is not None:
                written = item.get("category_id")
                name = categories.get(whole_number(written), f"category_id {shown(written)}")
                outline = box(*sides)
                area = item.get("area")
                area = outline.area if area is None else bounded(area, LARGEST_AREA)
                objects.append(CocoAnnotation(number, image, name, outline, difficult, area, crowd))
        except DataError as error:
            problems(error)
            if image is not None:
                unread.append(image)
    return objects, unread
