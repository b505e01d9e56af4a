"""SageMaker's annotation records, used by its image channels and its augmented manifests.

A record is the annotation of one image: `image_size`, `annotations` and, elsewhere, class names.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssd_jax.data import codes
from ssd_jax.data.sources.base import (
    Problems,
    Source,
    check_not_empty,
    class_ids,
    names_are_numbers,
    source_of_objects,
)
from ssd_jax.data.sources.json_records import (
    Box,
    box,
    corner_column,
    flag,
    member,
    shown,
    side,
    text,
    unreadable,
    whole_number,
)
from ssd_jax.errors import DataError

# More than any public class list has; a mistyped id must not make a list of that length.
MAX_CLASSES = 2**16


class RecordObject(NamedTuple):
    """An annotated object; `class_id` is None if it is not an id."""

    class_id: int | None
    class_text: str
    box: Box
    difficult: bool


class Record(NamedTuple):
    """The annotation of one image; `names` maps class ids to names, also ids it does not use."""

    where: str
    size: tuple[int, int]
    objects: tuple[RecordObject, ...]
    names: dict[int, str]


def parse_record(value: Any, where: str) -> Record:
    """Parse SageMaker's record: `image_size` and `annotations`; other keys are ignored.

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
        objects.append(
            RecordObject(whole_number(class_id), shown(class_id), box(*sides), difficult)
        )
    height, width = side(size, "height", where), side(size, "width", where)
    return Record(where, (height, width), tuple(objects), {})


def names_by_id(
    pairs: Sequence[tuple[Any, Any]], where: str, known: dict[tuple, dict[int, str]]
) -> dict[int, str]:
    """Class names by id, from (id, name) as written; an id must not have two names.

    `known` holds the names of earlier records: many records repeat them, and one copy is kept.
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
    """A source of records whose class ids count from 0.

    If the records name the ids that they use, classes are matched by name; `classes` may then have
    another order, and default to the names in the order of their ids. A record without names uses
    the names of the others, and an id without a name is an unknown class. If most records use ids
    that they do not name (SageMaker's COCO notebook kept COCO's ids there), the names are ignored:
    an id is then an index into `classes`, by default "0", "1", ...
    """
    objects = [thing for record in records for thing in record.objects]
    given = _believed_names(records, problems)
    known = given or {
        thing.class_id: str(thing.class_id)
        for thing in objects
        if thing.class_id is not None and 0 <= thing.class_id < MAX_CLASSES
    }
    stated = [
        (record.names if given and record.names else known).get(thing.class_id)
        for record in records
        for thing in record.objects
    ]
    by_id = [known.get(class_id, str(class_id)) for class_id in range(max(known, default=-1) + 1)]
    ids = {class_id: class_id for class_id in known}
    # Classes without names, those of a `.rec` file, are ids.
    named = classes and not (names_are_numbers(classes) and set(classes).isdisjoint(given.values()))
    if named and given:
        ids = dict(zip(given, class_ids(list(given.values()), classes).tolist(), strict=True))
    classes = tuple(classes or by_id)
    labels = [
        ids.get(thing.class_id, -1) if name == known.get(thing.class_id) else -1
        for thing, name in zip(objects, stated, strict=True)
    ]
    counts = np.array([len(record.objects) for record in records], np.int64)
    sizes = np.array([record.size for record in records], np.int32).reshape(-1, 2)
    written = corner_column([thing.box for thing in objects])

    def label_text(k: int) -> str:
        without = f"class_id {objects[k].class_text}"
        return (stated[k] or f"{without}, which has no name") if given else without

    source = source_of_objects(
        names=names,
        sizes=sizes,
        object_counts=counts,
        written=written,
        boxes=written / np.tile(np.repeat(sizes, counts, axis=0)[:, ::-1], 2),
        labels=np.array(labels, np.int64),
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


def _believed_names(records: Sequence[Record], problems: Problems) -> dict[int, str]:
    """Names by id; empty if most records that give names use an id that they do not name."""
    names_its_ids = [
        {thing.class_id for thing in record.objects if thing.class_id is not None}
        <= record.names.keys()
        for record in records
        if record.objects and record.names
    ]
    if 2 * sum(names_its_ids) < len(names_its_ids):
        return {}
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    seen: set[int] = set()
    for record in records:
        if id(record.names) in seen:
            continue
        seen.add(id(record.names))
        for class_id, name in record.names.items():
            problem = None
            if not 0 <= class_id < MAX_CLASSES:
                problem = f"class {class_id} is {name!r}, but ids go from 0 to {MAX_CLASSES - 1:,}"
            elif names.get(class_id, name) != name:
                problem = f"class {class_id} is {name!r}, but {names[class_id]!r} in other records"
            elif ids.get(name, class_id) != class_id:
                problem = f"the classes {ids[name]} and {class_id} are both named {name!r}"
            if problem:
                problems(_contradiction(record.where, problem))
            else:
                names[class_id], ids[name] = name, class_id
    return names


def _contradiction(where: str, problem: str) -> DataError:
    return DataError(
        codes.CLASS_NAMES_DISAGREE,
        where,
        f"{problem}, expected one name for each id and one id for each name",
        "Correct the names",
    )
