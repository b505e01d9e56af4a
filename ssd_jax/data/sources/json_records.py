"""What the JSON formats share: careful reading, references to images, SageMaker's record.

JSON comes from anywhere, so sizes are bounded, every value is checked before it is used, and what
is wrong is a `DataError` with its place. Boxes are pixels from 0: left, top, width, height.
"""

import json
import math
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ssd_jax.data import codes
from ssd_jax.data.sources.base import Problems, Source, build_source, check_not_empty, class_ids
from ssd_jax.errors import DataError

# Ten thousand objects, one of them in 200 bytes, are 2 MB.
MAX_RECORD_BYTES = 8 * 2**20
MAX_PIXELS_OF_A_SIDE = 2**24
# Farther out, a number is a mistake, and its squares and products would overflow.
LARGEST_COORDINATE = 1e9
# More than the largest public set of classes; a mistyped id must not make a list of its length.
MAX_CLASSES = 2**16


class Box(NamedTuple):
    """A box as written, in pixels from 0; `corners` are NaN for what is no number."""

    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax
    text: str


class Object(NamedTuple):
    """An annotated object; `class_id` is None for what is no id."""

    class_id: int | None
    class_text: str
    box: Box
    difficult: bool


class Record(NamedTuple):
    """The annotation of one image; `names` are those it gives to class ids, perhaps of others."""

    where: str
    size: tuple[int, int]
    objects: tuple[Object, ...]
    names: dict[int, str]


def read_json(
    path: pathlib.Path, *, max_bytes: int = MAX_RECORD_BYTES, drop: Collection[str] = ()
) -> Any:
    """The value in a file; see `parse_json`."""
    try:
        with path.open("rb") as file:
            # Not the limit itself, for which memory would be taken at once.
            data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    except OSError as error:
        raise unreadable(str(path), f"the file cannot be read ({error})") from error
    return parse_json(data, str(path), max_bytes=max_bytes, drop=drop)


def parse_json(
    data: bytes, where: str, *, max_bytes: int = MAX_RECORD_BYTES, drop: Collection[str] = ()
) -> Any:
    """The value of a JSON text (UTF-8). A key given twice is an error; `drop` keys are left out.

    What is dropped never adds up in memory: COCO's outlines are most of its files.
    """

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            twice = next(
                key for key, count in Counter(key for key, _ in pairs).items() if count > 1
            )
            raise unreadable(where, f"the key {twice!r} stands twice in one object")
        for key in drop:
            value.pop(key, None)
        return value

    if len(data) > max_bytes:
        raise DataError(
            codes.ANNOTATION_TOO_LARGE,
            where,
            f"more than {max_bytes:,} bytes, which no annotation of this kind has",
            "Check that it is an annotation",
        )
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=build)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        problem = "too deeply nested" if isinstance(error, RecursionError) else error
        raise unreadable(where, f"the JSON cannot be read ({problem})") from error


def unreadable(where: str, problem: str) -> DataError:
    """The error of an annotation that is not as its format says."""
    fix = "Correct it, or set data.problems to 'skip' to train without it"
    return DataError(codes.ANNOTATION_UNREADABLE, where, problem, fix)


def member(value: Any, key: str, kind: type, where: str) -> Any:
    """`value[key]`, which must be of a kind."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        kinds = {dict: "an object", list: "a list", str: "a text"}
        raise unreadable(where, f"{key!r} is {shown(found)}, expected {kinds[kind]}")
    return found


def text(value: Any, key: str, where: str) -> str:
    """`value[key]`, a text that can be printed and written to a file."""
    found = member(value, key, str, where)
    if (
        not found.strip()
        or "\0" in found
        or any(0xD800 <= ord(letter) < 0xE000 for letter in found)
    ):
        raise unreadable(where, f"{key!r} is {found!r}, expected a text")
    return found


def whole_number(value: Any) -> int | None:
    """An integer, also one that is written as 3.0 or "3"; None for anything else."""
    if isinstance(value, str) and len(value) < 20:
        try:
            return int(value)
        except ValueError:
            return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def side(value: Any, key: str, where: str) -> int:
    """`value[key]`, a side of an image in pixels."""
    found = value.get(key) if isinstance(value, dict) else None
    pixels = whole_number(found)
    if pixels is None or not 1 <= pixels <= MAX_PIXELS_OF_A_SIDE:
        raise unreadable(where, f"{key!r} is {shown(found)}, expected the image's in whole pixels")
    return pixels


def flag(value: dict[str, Any], key: str, where: str) -> bool:
    """`value[key]`, 0 or 1, false or true; absent is 0."""
    found = value.get(key, 0)
    if not isinstance(found, (int, float)) or found not in (0, 1):
        raise unreadable(where, f"{key!r} is {shown(found)}, expected 0 or 1")
    return bool(found)


def box(left: Any, top: Any, width: Any, height: Any) -> Box:
    """A box of four values that should be numbers."""
    values = (left, top, width, height)
    x, y, w, h = (_coordinate(value) for value in values)
    words = zip(("left", "top", "width", "height"), values, strict=True)
    return Box((x, y, x + w, y + h), ", ".join(f"{word} {shown(value)}" for word, value in words))


def shown(value: Any) -> str:
    """A value for a message, cut to a readable length."""
    try:
        words = repr(value)
    except RecursionError:
        words = f"a deeply nested {type(value).__name__}"
    return words if len(words) <= 60 else words[:57] + "..."


def parse_record(value: Any, where: str) -> Record:
    """SageMaker's record: `image_size`, `annotations`; what else stands there is not read.

    `difficult` (0 or 1) of an object is an extension that other readers ignore.
    """
    size = value.get("image_size") if isinstance(value, dict) else None
    if isinstance(size, list) and len(size) == 1:
        size = size[0]
    if not isinstance(size, dict):
        problem = f"'image_size' is {shown(size)}, expected a list of one {{width, height, depth}}"
        raise unreadable(where, problem)
    objects = []
    for number, item in enumerate(member(value, "annotations", list, where), 1):
        place = f"{where}, object {number}"
        if not isinstance(item, dict):
            raise unreadable(place, f"it is {shown(item)}, expected an object")
        sides = (item.get(key) for key in ("left", "top", "width", "height"))
        class_id = item.get("class_id")
        difficult = flag(item, "difficult", place)
        objects.append(Object(whole_number(class_id), shown(class_id), box(*sides), difficult))
    height, width = side(size, "height", where), side(size, "width", where)
    return Record(where, (height, width), tuple(objects), {})


def names_by_id(
    pairs: Sequence[tuple[Any, Any]], where: str, known: dict[tuple, dict[int, str]]
) -> dict[int, str]:
    """Class names by id, from (id, name) as written; an id must not have two names.

    `known` are those of earlier records: many repeat the same names, which are then kept once.
    """
    names: dict[int, str] = {}
    for written, name in pairs:
        class_id = whole_number(written)
        if class_id is None or not isinstance(name, str):
            problem = f"a class is {shown(written)}: {shown(name)}, expected an id and a name"
            raise unreadable(where, problem)
        name = text({"name": name}, "name", where).strip()
        if names.setdefault(class_id, name) != name:
            raise _contradiction(where, f"class {class_id} is {names[class_id]!r} and {name!r}")
    return known.setdefault(tuple(names.items()), names)


def source_of_records(
    records: Sequence[Record],
    *,
    names: Sequence[str],
    images: Sequence[str],
    read_image: Callable[[int], bytes],
    classes: Sequence[str] | None,
    problems: Problems,
    where: str,
) -> Source:
    """The source of records whose class ids count from 0.

    Where the records name all the ids that they use, classes go by name; `classes` may then have
    another order, and are by default the names in order of their ids. Names for other ids than
    those in use (SageMaker's COCO notebook left COCO's own) are not believed: then an id is the
    place in `classes`, by default "0", "1", ...
    """
    objects = [thing for record in records for thing in record.objects]
    given = _believed_names(records, problems)
    used = [
        thing.class_id
        for thing in objects
        if thing.class_id is not None and 0 <= thing.class_id < MAX_CLASSES
    ]
    count = max([*used, *given], default=-1) + 1
    by_id = [given.get(class_id, str(class_id)) for class_id in range(count)]
    if classes and given:
        ids = dict(zip(range(count), class_ids(by_id, classes).tolist(), strict=True))
    else:
        ids = {class_id: class_id for class_id in used}
    classes = tuple(classes or by_id)
    labels = np.array([ids.get(thing.class_id, -1) for thing in objects], np.int64)
    counts = np.array([len(record.objects) for record in records], np.int64)
    sizes = np.array([record.size for record in records], np.int32).reshape(-1, 2)
    written = corner_column([thing.box for thing in objects])

    def label_text(k: int) -> str:
        return given.get(objects[k].class_id) or f"class_id {objects[k].class_text}"

    source = build_source(
        names=names,
        sizes=sizes,
        object_counts=counts,
        written=written,
        boxes=written / np.tile(np.repeat(sizes, counts, axis=0)[:, ::-1], 2),
        labels=labels,
        difficult=np.array([thing.difficult for thing in objects], bool),
        classes=classes,
        read_image=read_image,
        locate=images.__getitem__,
        problems=problems,
        locate_object=lambda image, number: f"{records[image].where}, object {number}",
        label_text=label_text,
        box_text=lambda k: f"({objects[k].box.text})",
    )
    return check_not_empty(source, where)


def corner_column(boxes: Sequence[Box]) -> Float[np.ndarray, "M 4"]:
    """The corners of boxes, in pixels."""
    return np.array([box.corners for box in boxes], np.float64).reshape(-1, 4)


def short_names(references: Sequence[str]) -> tuple[str, ...]:
    """A unique name for each reference: without folder and suffix, or as little more as it takes.

    The references must differ.
    """
    paths = [
        pathlib.PurePosixPath(reference.partition("://")[2] or reference)
        for reference in references
    ]
    for shorten in (lambda path: path.stem, lambda path: str(path.with_suffix(""))):
        names = tuple(shorten(path) if path.name else str(path) for path in paths)
        if len(set(names)) == len(names):
            return names
    return tuple(references)


def path_inside(folder: pathlib.Path, reference: str, where: str) -> pathlib.Path:
    """The file that a reference means; it must lie in the folder."""
    parts = pathlib.PurePosixPath(reference)
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(
            codes.REFERENCE_OUTSIDE,
            where,
            f"the image {shown(reference)} is outside, expected a path inside {folder}",
            "Correct the path, or give the folder that holds all images",
        )
    path = folder / parts
    try:
        found = path.is_file()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise image_missing(str(path), f"{where} names it and there is no such file")
    return path


def read_file(path: pathlib.Path) -> bytes:
    """The bytes of an image that was there when the annotations were read."""
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"the image was there when training began and cannot be read now ({error})"
        raise image_missing(str(path), problem) from error


def image_missing(where: str, problem: str) -> DataError:
    """The error of an image that is not there."""
    return DataError(codes.IMAGE_MISSING, where, problem, "Add the image, or take its record out")


def listed_twice(where: str, reference: str) -> DataError:
    """The error of an image with two records."""
    return DataError(
        codes.RECORD_TWICE,
        where,
        f"the image {shown(reference)} has a record already, expected one with all its objects",
        "Join the records, or remove one of them",
    )


def check_folder(folder: pathlib.Path) -> None:
    """A `DataError` if there is no such folder."""
    if not folder.is_dir():
        raise DataError(
            codes.FOLDER_MISSING,
            str(folder),
            "there is no such folder, expected one with images and their annotations",
            "Correct the path",
        )


def _coordinate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) <= LARGEST_COORDINATE else math.nan


def _believed_names(records: Sequence[Record], problems: Problems) -> dict[int, str]:
    names: dict[int, str] = {}
    for record in records:
        used = {thing.class_id for thing in record.objects if thing.class_id is not None}
        if not used <= record.names.keys():
            return {}
    seen: set[int] = set()
    for record in records:
        if id(record.names) in seen:
            continue
        seen.add(id(record.names))
        for class_id, name in record.names.items():
            if not 0 <= class_id < MAX_CLASSES:
                return {}
            if names.setdefault(class_id, name) != name:
                problem = f"class {class_id} is {name!r}, and {names[class_id]!r} in other records"
                problems(_contradiction(record.where, problem))
    if len(set(names.values())) < len(names):
        name = Counter(names.values()).most_common(1)[0][0]
        numbers = ", ".join(str(number) for number in sorted(names) if names[number] == name)
        problems(_contradiction(records[0].where, f"the classes {numbers} are all named {name!r}"))
        return {}
    return names


def _contradiction(where: str, problem: str) -> DataError:
    return DataError(
        codes.CLASS_NAMES_DISAGREE,
        where,
        f"{problem}, expected one name for each id and one id for each name",
        "Correct the names",
    )
