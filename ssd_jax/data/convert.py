"""Any data set into another format: `ssd-jax convert SRC DST`."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ssd_jax.data.open import MANIFEST_SUFFIXES, open_data
from ssd_jax.data.sources.base import Problems, Source
from ssd_jax.data.storage import is_remote
from ssd_jax.data.writers import (
    check_class_names,
    file_stems,
    write_coco,
    write_json_folder,
    write_manifest,
    write_record_file,
    write_voc,
)
from ssd_jax.errors import UserError


class Format(NamedTuple):
    """How a format is written: `write(folder, source, name, progress=...)` makes the `parts`.

    `suffixes` are those of its file; a format without any is a folder. A set is whole when the last
    part is there.
    """

    write: Callable[..., None]
    suffixes: tuple[str, ...]
    parts: Callable[[str], list[str]]


def _with_image_folder(name: str) -> list[str]:
    return [pathlib.PurePath(name).stem, name]


def _recordio_parts(name: str) -> list[str]:
    path = pathlib.PurePath(name)
    return [str(path.with_suffix(s)) for s in (".classes.txt", ".lst", ".idx")] + [name]


FORMATS = {
    "voc": Format(
        write_voc, (), lambda name: ["JPEGImages", "Annotations", "classes.txt", "ImageSets"]
    ),
    "json": Format(write_json_folder, (), lambda name: [name, f"{name}_annotation"]),
    "manifest": Format(write_manifest, MANIFEST_SUFFIXES, _with_image_folder),
    "coco": Format(write_coco, (".json",), _with_image_folder),
    "recordio": Format(write_record_file, (".rec",), _recordio_parts),
}


def convert(
    source: Source,
    destination: str | os.PathLike,
    *,
    format: str | None = None,
    name: str = "train",
    progress: bool = True,
) -> None:
    """Write a source in a format of `FORMATS`, told by the suffix of `destination` if not given.

    Images are passed through byte for byte. `name` is the image set of VOC (format `voc`, the
    default for a folder) or names SageMaker's pair of folders (`json`); other formats are called
    like their file. What is there already is not overwritten, and nothing has its name before it is
    whole. What a source cannot give or a format cannot hold goes to `source.problems`.
    """
    destination = pathlib.Path(destination)
    target = FORMATS[_check_format(destination, format)]
    check_class_names(source.classes)
    folder = destination.parent if target.suffixes else destination
    name = destination.name if target.suffixes else file_stems([name])[0]
    folder.mkdir(parents=True, exist_ok=True)
    for part in target.parts(name):
        if os.path.lexists(folder / part):
            raise UserError(
                f"{folder / part} is there already: move it away, or give another place"
            )
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as temporary:
        target.write(pathlib.Path(temporary), source, name, progress=progress)
        for part in target.parts(name):
            (pathlib.Path(temporary) / part).rename(folder / part)


def run_convert(
    location: str,
    destination: str | os.PathLike,
    *,
    split: Sequence[str] = (),
    format: str | None = None,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    problems: str = "error",
    progress: bool = True,
) -> str:
    """The verb `convert`: from any location that `open_data` knows; returns what to print.

    `name` is by default the last word of the only split ("VOC2007/test": test), else "train".
    """
    if is_remote(destination):
        raise UserError(f"{destination} is remote: convert to a local path, then copy it there")
    _check_format(pathlib.Path(destination), format)
    source = open_data(location, split=split, classes=classes, problems=Problems(problems))
    if name is None:
        name = split[0].rpartition("/")[2] if len(split) == 1 else "train"
    convert(source, destination, format=format, name=name, progress=progress)
    return f"{source.describe()}\nwritten to {destination}"


def _check_format(destination: pathlib.Path, format: str | None) -> str:
    """The format to write; a `UserError` if it is none, or does not fit the destination."""
    suffix = destination.suffix.lower()
    if format is None:
        found = [key for key, target in FORMATS.items() if suffix in target.suffixes]
        return found[0] if found else "voc"
    if format not in FORMATS:
        raise UserError(f"format is {format!r}: expected one of {', '.join(FORMATS)}")
    suffixes = FORMATS[format].suffixes
    if suffixes and suffix not in suffixes:
        raise UserError(
            f"{destination} ends in {suffix!r}: expected {' or '.join(suffixes)} for {format}"
        )
    return format
