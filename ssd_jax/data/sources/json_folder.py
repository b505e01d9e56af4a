"""Images with one JSON annotation each, the format of the SageMaker algorithm's image channels.

The format: docs.aws.amazon.com/sagemaker/latest/dg/object-detection.html, "Train with the Image
Format". Two folders (`train`, `train_annotation`) or one that holds both.
"""

import os
import pathlib
from collections.abc import Sequence

from ssd_jax.data import codes
from ssd_jax.data.sources.base import Problems, Source
from ssd_jax.data.sources.image_file import read_file
from ssd_jax.data.sources.json_records import (
    check_folder,
    listed_twice,
    member,
    path_inside,
    read_json,
    short_names,
    text,
)
from ssd_jax.data.sources.sagemaker_records import (
    Record,
    names_by_id,
    parse_record,
    source_of_records,
)
from ssd_jax.data.sources.voc import IMAGE_SUFFIXES
from ssd_jax.errors import DataError
from ssd_jax.files import files_below


def open_json_folder(
    images: str | os.PathLike,
    annotations: str | os.PathLike | None = None,
    *,
    classes: Sequence[str] | None = None,
    problems: Problems | None = None,
) -> Source:
    """Open the images named by the JSON files under `annotations` (default: the same folder).

    `file` of an annotation is a path inside `images`. An image without an annotation is a problem;
    an image without objects has an annotation with an empty list. `source_of_records` says how
    class ids and `categories` become classes.
    """
    problems = problems or Problems()
    images = pathlib.Path(images)
    annotations = images if annotations is None else pathlib.Path(annotations)
    for folder in (images, annotations):
        check_folder(folder)
    found: dict[str, tuple[pathlib.Path, Record]] = {}
    named: set[str] = set()
    known: dict[tuple, dict[int, str]] = {}
    for path in sorted(each for each in files_below(annotations) if each.suffix == ".json"):
        try:
            value = read_json(path)
            reference = str(pathlib.PurePosixPath(text(value, "file", str(path))))
            repeated = reference in named
            # Before the rest is read, so that a bad annotation is one problem, not two.
            named.add(reference)
            if repeated:
                raise listed_twice(str(path), reference)
            image = path_inside(images, reference, str(path))
            found[reference] = (image, _read_annotation(value, str(path), known))
        except DataError as error:
            problems(error)
    for path in sorted(files_below(images)):
        reference = path.relative_to(images).as_posix()
        if path.suffix.lower() in IMAGE_SUFFIXES and reference not in named:
            problems(_annotation_missing(path, annotations))

    paths = [path for path, _ in found.values()]
    return source_of_records(
        [record for _, record in found.values()],
        names=short_names(list(found)),
        images=[str(path) for path in paths],
        read_image=lambda index: read_file(paths[index]),
        classes=classes,
        problems=problems,
        where=str(annotations),
    )


def _read_annotation(value: dict, where: str, known: dict[tuple, dict[int, str]]) -> Record:
    record = parse_record(value, where)
    if "categories" not in value:
        return record
    pairs = []
    for item in member(value, "categories", list, where):
        category = item if isinstance(item, dict) else {}
        pairs.append((category.get("class_id"), category.get("name")))
    return record._replace(names=names_by_id(pairs, where, known))


def _annotation_missing(image: pathlib.Path, annotations: pathlib.Path) -> DataError:
    return DataError(
        codes.ANNOTATION_MISSING,
        str(image),
        f"no JSON file under {annotations} names it, expected one for each image",
        "Write it (with an empty list for an image without objects), or move the image away",
    )
