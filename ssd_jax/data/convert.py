"""Conversion of a data set to another format: `ssd-jax convert SRC DST`."""

import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ssd_jax.data.open import MANIFEST_SUFFIXES, open_data
from ssd_jax.data.sources.base import Problems, Source
from ssd_jax.data.storage import is_remote
from ssd_jax.data.tfds_writer import check_set_name, write_tfds
from ssd_jax.data.writers import (
    check_class_names,
    file_stems,
    write_coco,
    write_json_folder,
    write_manifest,
    write_record_file,
    write_voc,
)
from ssd_jax.errors import UserError, check_choice
from ssd_jax.files import make_folder
from ssd_jax.locks import remove_unfinished, unfinished


class Format(NamedTuple):
    """How a format is written: `write(folder, source, name)` makes the `parts`.

    `suffixes` are the allowed suffixes of its file; a format without any is a folder. A set is
    complete when its last part exists.
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
    "tfds": Format(write_tfds, (), lambda name: [name]),
}


class Destination(NamedTuple):
    """Where a set is written: the parts of a set NAME of `format` in a folder."""

    format: Format
    folder: pathlib.Path
    name: str

    @property
    def parts(self) -> list[str]:
        """The names of the parts in the folder."""
        return self.format.parts(self.name)

    @property
    def split(self) -> tuple[str, ...]:
        """The splits to pass to `open_data` to read the set back."""
        return (self.name,) if self.format in (FORMATS["voc"], FORMATS["tfds"]) else ()

    @property
    def location(self) -> str:
        """The location to pass to `open_data` to read the set back."""
        return str(self.folder if self.format is FORMATS["voc"] else self.folder / self.name)


def check_destination(
    destination: str | os.PathLike, *, format: str | None = None, name: str = "train"
) -> Destination:
    """What `convert` would write; a `UserError` if it is remote, badly named or already exists."""
    if is_remote(destination):
        raise UserError(f"{destination} is remote: give a local path, then copy it there")
    destination = pathlib.Path(destination)
    form = FORMATS[_check_format(destination, format)]
    if form.suffixes:
        target = Destination(form, destination.parent, destination.name)
    else:
        target = Destination(form, destination, file_stems([name])[0])
    if form is FORMATS["tfds"]:
        check_set_name(target.name)
    if target.folder.exists() and not target.folder.is_dir():
        raise UserError(f"{target.folder} is a file: expected a folder, or a name not in use")
    for part in target.parts:
        if os.path.lexists(target.folder / part):
            raise UserError(
                f"{target.folder / part} already exists: move it away, or give another destination"
            )
    return target


def convert(
    source: Source,
    destination: str | os.PathLike,
    *,
    format: str | None = None,
    name: str = "train",
) -> Destination:
    """Write a source in one of the `FORMATS`, by default the one of `destination`'s suffix.

    Images are copied byte for byte. Only what the format needs of them is checked: file type and
    size, and nothing for RecordIO, which also stores the bytes of a broken image. `name` is the
    image set of VOC (format `voc`, the default for a folder) or the name of SageMaker's pair of
    folders (`json`); the other formats are named after their file. Existing files are not
    overwritten, and no file has its final name before it is complete. Images that cannot be read
    and boxes that the format cannot hold go to `source.problems`; it is a `UserError` if no image
    is left.
    """
    target = check_destination(destination, format=format, name=name)
    check_class_names(source.classes)
    make_folder(target.folder)
    remove_unfinished(target.folder)
    with unfinished(target.folder) as scratch:
        target.format.write(scratch, source, target.name)
        for part in target.parts:
            (scratch / part).rename(target.folder / part)
    return target


def describe_copy(source: Source, target: Destination) -> str:
    """What was written, counted by reading it back; what was left out; how to read it."""
    problems = Problems("skip")
    problems.found += source.problems.found
    copy = open_data(target.location, split=target.split, problems=problems)
    options = ("--split", *target.split) if target.split else ()
    return f"{copy.describe()}\nread it with: {shlex.join([target.location, *options])}"


def split_name(split: Sequence[str]) -> str:
    """The name for a copy: the end of the only split ("VOC2007/test": test), else train."""
    return split[0].rpartition("/")[2] if len(split) == 1 else "train"


def run_convert(
    location: str,
    destination: str | os.PathLike,
    *,
    split: Sequence[str] = (),
    format: str | None = None,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    problems: str = "error",
) -> str:
    """Run the verb `convert` from any location that `open_data` knows; returns what to print.

    `name` defaults to `split_name(split)`.
    """
    options = {"format": format, "name": split_name(split) if name is None else name}
    check_destination(destination, **options)
    policy = Problems(problems, advice="--skip-problems leaves out what cannot be used")
    source = open_data(location, split=split, classes=classes, problems=policy)
    return describe_copy(source, convert(source, destination, **options))


def _check_format(destination: pathlib.Path, format: str | None) -> str:
    """The format to write; a `UserError` if it is unknown or does not fit the destination."""
    suffix = destination.suffix.lower()
    if format is None:
        found = [key for key, target in FORMATS.items() if suffix in target.suffixes]
        return found[0] if found else "voc"
    check_choice("format", format, FORMATS)
    suffixes = FORMATS[format].suffixes
    if suffixes and suffix not in suffixes:
        raise UserError(
            f"{destination} ends in {suffix!r}: expected {' or '.join(suffixes)} for {format}"
        )
    return format
