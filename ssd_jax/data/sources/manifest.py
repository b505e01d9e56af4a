"""Augmented manifests of SageMaker Ground Truth: JSON lines, an image with its annotation each.

The format: docs.aws.amazon.com/sagemaker/latest/dg/augmented-manifest.html. A line is
`{"source-ref": IMAGE, LABEL: {"image_size", "annotations"}, LABEL + "-metadata": {"class-map"}}`.
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

from ssd_jax.data import codes
from ssd_jax.data.sources.base import Problems, Source
from ssd_jax.data.sources.image_file import image_missing, read_file
from ssd_jax.data.sources.json_records import (
    MAX_RECORD_BYTES,
    listed_twice,
    parse_json,
    short_names,
    text,
    unreadable,
)
from ssd_jax.data.sources.sagemaker_records import (
    Record,
    names_by_id,
    parse_record,
    source_of_records,
)
from ssd_jax.errors import DataError, UserError


def open_manifest(
    path: str | os.PathLike,
    *,
    label: str | None = None,
    base: str | os.PathLike | None = None,
    read_remote: Callable[[str], bytes] | None = None,
    classes: Sequence[str] | None = None,
    problems: Problems | None = None,
) -> Source:
    """Open the images of a manifest, in its order.

    `label` is the attribute with the annotations, by default the only one that has `annotations`;
    all others are ignored. A `source-ref` without a scheme is a file relative to `base` (a folder
    or URL; default: the manifest's folder). `read_remote` reads images with a scheme, on demand.
    The class-maps of all lines together name the classes; see `source_of_records`.
    """
    problems = problems or Problems()
    path = pathlib.Path(path)
    base = str(path.parent if base is None else base)
    records: dict[str, Record] = {}
    labels: set[str] = set()
    known: dict[tuple, dict[int, str]] = {}
    for where, line in _lines(path):
        try:
            value = parse_json(line, where)
            image = _join(base, text(value, "source-ref", where))
            found = _label_of(value, label, where)
            labels.add(found)
            if image in records:
                raise listed_twice(where, image)
            record = _read_line(value, found, where, known)
            _check_reference(image, read_remote, where)
            records[image] = record
        except DataError as error:
            problems(error)
        _check_one_label(labels, path)

    images = list(records)

    def read_image(index: int) -> bytes:
        image = images[index]
        return read_remote(image) if _has_scheme(image) else read_file(pathlib.Path(image))

    return source_of_records(
        list(records.values()),
        names=short_names(images),
        images=images,
        read_image=read_image,
        classes=classes,
        problems=problems,
        where=str(path),
    )


def _lines(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """The place of each line and the line; only one is in memory at a time."""
    if not path.is_file():
        folder_of = f"{path.parent} holds no such file"
        raise DataError(codes.ANNOTATION_MISSING, str(path), folder_of, "Correct the path")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_RECORD_BYTES + 1):
            number += 1
            if line.strip():
                yield f"{path}, line {number}", line
            while len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_RECORD_BYTES + 1)  # skip the rest of a refused line


def _has_scheme(reference: str) -> bool:
    return "://" in reference


def _join(base: str, reference: str) -> str:
    reference = reference.removeprefix("file://")
    if _has_scheme(reference):
        return reference
    if _has_scheme(base):
        return f"{base.rstrip('/')}/{reference}"
    return str(pathlib.Path(base) / reference)


def _check_reference(image: str, read_remote: Callable | None, where: str) -> None:
    if _has_scheme(image):
        if read_remote is None:
            raise UserError(
                f"{where}: {image} is not a local file, expected one because read_remote is not set"
            )
        return
    try:
        found = pathlib.Path(image).is_file()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise image_missing(image, f"{where} names it, but there is no such file")


def _label_of(value: dict, label: str | None, where: str) -> str:
    labels = [
        key
        for key, content in value.items()
        if isinstance(content, dict) and "annotations" in content
    ]
    if label is not None:
        labels = [key for key in labels if key == label]
    if not labels:
        sought = "no attribute with 'annotations'" if label is None else f"no attribute {label!r}"
        raise DataError(
            codes.LABEL_MISSING,
            where,
            f"{sought} among {', '.join(map(repr, value))}",
            "Label the image, or remove the line (manifests of video frames cannot be read)",
        )
    if len(labels) > 1:
        raise _several_labels(labels, where)
    return labels[0]


def _check_one_label(labels: set[str], path: pathlib.Path) -> None:
    if len(labels) > 1:
        raise _several_labels(sorted(labels), str(path))


def _several_labels(labels: Sequence[str], where: str) -> UserError:
    return UserError(
        f"{where}: {', '.join(labels)} have annotations, expected one attribute. "
        f"Choose one: MANIFEST#{labels[0]} or, for a channel of a SageMaker job, its "
        "AttributeNames in inputdataconfig.json; or leave only one in the manifest."
    )


def _read_line(value: dict, label: str, where: str, known: dict[tuple, dict[int, str]]) -> Record:
    record = parse_record(value[label], where)
    metadata = value.get(f"{label}-metadata", {})
    class_map = metadata.get("class-map", {}) if isinstance(metadata, dict) else None
    if not isinstance(class_map, dict):
        raise unreadable(where, f"'{label}-metadata' holds no class-map of ids and names")
    return record._replace(names=names_by_id(list(class_map.items()), where, known))
