"""Any data set from its location: the one place that knows all formats."""

import functools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from ssd_jax.data import codes
from ssd_jax.data.remote import shown_url
from ssd_jax.data.sources.base import Problems, Source, combine, names_are_numbers
from ssd_jax.data.sources.coco import open_coco
from ssd_jax.data.sources.json_folder import open_json_folder
from ssd_jax.data.sources.manifest import open_manifest
from ssd_jax.data.sources.recordio import open_recordio
from ssd_jax.data.sources.tfds import open_tfds
from ssd_jax.data.sources.voc import IMAGE_SUFFIXES, open_voc
from ssd_jax.data.sources.yolo import SUFFIXES as YOLO_SUFFIXES
from ssd_jax.data.sources.yolo import find_yaml, open_yolo
from ssd_jax.data.storage import is_remote, read_bytes, stage
from ssd_jax.errors import DataError, UserError, what_is_there
from ssd_jax.files import files_below, listed

MANIFEST_SUFFIXES = (".manifest", ".jsonl")
# Either list of COCO's may come first, and be longer than what is read of it.
_COCO, _LABELME = (r'"images"\s*:\s*\[', r'"image_id"\s*:'), (r'"shapes"\s*:\s*\[',)
# Of files, which have no splits.
FILE_SUFFIXES = (*MANIFEST_SUFFIXES, ".json", ".rec")
FORMATS = """
  x.rec                          RecordIO; class names from x.classes.txt or classes.txt beside it
  x.manifest, x.jsonl            augmented manifest (x.manifest#NAME: the label attribute NAME)
  x.json                         COCO, with its images beside it or in images/
  data.yaml, a folder with it    YOLO
  a folder with Annotations/     PASCAL VOC, or a devkit that holds such folders
  a folder of images and JSON    one JSON file an image, or a pair NAME/, NAME_annotation/
  tfds:NAME, a prepared folder   TensorFlow Datasets, as tfds:voc/2007 or DIR/voc/2007"""


def open_data(
    location: str | os.PathLike,
    *,
    split: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    problems: Problems | None = None,
    label_width: int | None = None,
) -> Source:
    """The source at a location, of whatever format (see `FORMATS`), or at several, as "A + B".

    `split` are the image sets of VOC, the splits of YOLO or TFDS, or the NAMEs of SageMaker's
    pairs; other formats have none. `LOCATION@SPLIT,SPLIT` has splits of its own (see `open_parts`).
    Several sets must have the same class names; without `classes` they get the names of all,
    sorted, where they differ. A URL (`s3://`, `gs://`, `https://`) is copied to the local cache
    first, of COCO and YOLO the folder that the file is in; but the images of a manifest are read
    one by one when they are asked for. `label_width` is that of `open_recordio`; other formats have
    no use for it.
    """
    split = (split,) if isinstance(split, str) else tuple(split)
    classes = (classes,) if isinstance(classes, str) else classes
    openers = [
        functools.partial(_open_part, place, own, label_width)
        for place, own in open_parts(os.fspath(location), split)
    ]
    return _open_together(openers, classes=classes, problems=problems or Problems())


def open_parts(location: str, split: tuple[str, ...] = ()) -> list[tuple[str, tuple[str, ...]]]:
    """The locations in "A + B@SPLIT,SPLIT", with the splits of each: its own, or else `split`.

    What lies here under the whole name is one location. Of several, those without splits do not
    get `split`, unless none has any. An `@` in a URL or in a name that is not there yet may belong
    to it: one more at the end tells so.
    """
    if os.path.lexists(location):
        return [(location, split)]
    parts = [_own_split(part.strip()) for part in location.split(" + ") if part.strip()]
    if not parts:
        raise UserError(f"the location is {location!r}: there is no location in it, expected one")
    without = [_suffix(place) in FILE_SUFFIXES for place, _ in parts]
    return [
        (place, (() if is_file and not all(without) else split) if own is None else own)
        for (place, own), is_file in zip(parts, without, strict=True)
    ]


def split_of_role(location: str, split: tuple[str, ...], role: str) -> tuple[str, ...]:
    """The splits to open a location with, if `split` are those that a config has for a `role`.

    A config for any data may name the split "train" for training. Files such as .rec or COCO's
    .json have no splits, so for them this name, and no other, is left out.
    """
    if os.path.lexists(location):
        places = [location]
    else:
        places = [place for place, _ in open_parts(location)] if location.strip() else []
    are_files = places and all(_suffix(place) in FILE_SUFFIXES for place in places)
    return () if are_files and split == (role,) else split


def _own_split(location: str) -> tuple[str, tuple[str, ...] | None]:
    """A location without its splits, and these; None if it has none of its own."""
    # What a web server has are files, and an @ may stand in their addresses.
    if os.path.lexists(location) or location.startswith(("http://", "https://")):
        return location, None
    place, separator, own = location.rpartition("@")
    if not separator or _suffix(own) in FILE_SUFFIXES:
        return location, None
    return place, tuple(name.strip() for name in own.split(",") if name.strip())


def _suffix(location: str) -> str:
    place = _without_label(location)[0]
    if is_remote(place):
        place = place.partition("?")[0]
    return pathlib.PurePosixPath(place).suffix.lower()


def _open_together(
    openers: Sequence[Callable[..., Source]],
    *,
    classes: Sequence[str] | None,
    problems: Problems,
) -> Source:
    """One source of all. Without `classes`, names that differ are opened again as one list."""
    if len(openers) == 1:
        return openers[0](classes=classes, problems=problems)
    before = len(problems.found)
    sources = [opener(classes=classes, problems=problems) for opener in openers]
    found = any(source.classes_found for source in sources)
    listed = {source.classes for source in sources}
    if len(listed) > 1 and not any(map(names_are_numbers, listed)):
        del problems.found[before:]  # they come again
        names = tuple(sorted(set().union(*listed)))
        sources = [opener(classes=names, problems=problems) for opener in openers]
    together = combine(sources)
    together.classes_found = found
    return together


def _open_part(
    location: str,
    split: tuple[str, ...],
    label_width: int | None,
    *,
    classes: Sequence[str] | None,
    problems: Problems,
) -> Source:
    words = {"classes": classes, "problems": problems}
    if location.startswith("tfds:"):
        return open_tfds(location.removeprefix("tfds:"), _tfds_split(location, split), **words)
    place, label = _without_label(location)
    suffix = _suffix(location)
    if suffix in FILE_SUFFIXES and split:
        raise UserError(
            f"{location} has no splits: expected none, got {', '.join(split)}. In a config that is "
            "image_sets = () beside this root, for `ssd-jax train` "
            "'--config.data.train.image_sets=()' (or data.val, data.test); elsewhere leave out "
            "--split."
        )
    if suffix in MANIFEST_SUFFIXES:
        base = place.rpartition("/")[0] if is_remote(place) else None
        path = stage(place) if is_remote(place) else place
        return open_manifest(path, label=label, base=base, read_remote=read_bytes, **words)
    if is_remote(location) and suffix == ".rec":
        return _open_remote_recordio(location, label_width=label_width, **words)
    path = _staged(location, with_neighbours=suffix in (".json", *YOLO_SUFFIXES))
    if suffix in YOLO_SUFFIXES and path.is_file():
        return open_yolo(path, split, **words)
    if suffix == ".json" and path.is_file():
        return open_coco(path, **words)
    if suffix == ".rec" and path.is_file():
        return _open_recordio(path, label_width=label_width, **words)
    if path.is_file():
        _refuse_other_formats(path)
    if not path.is_dir():
        problem, fix = "an unknown format", f"Give one of these:{FORMATS}"
        if not path.exists():
            problem = f"there is no such file or folder; {what_is_there(path)}"
            fix = "Correct the path"
            if not path.is_absolute():
                fix += f": a relative one counts from the current directory, {pathlib.Path.cwd()}"
        raise DataError(codes.FOLDER_MISSING, location, problem, fix)
    return _open_folder(path, split, label_width, **words)


def _is_of_another_kind(path: pathlib.Path, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns is near the beginning of a JSON file that is not SageMaker's."""
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(2**16)
    return not re.search(r'"file"\s*:', head) and any(re.search(p, head) for p in patterns)


def _open_folder(
    path: pathlib.Path, split: tuple[str, ...], label_width: int | None, **words
) -> Source:
    if versions := list(path.glob("[0-9]*/dataset_info.json")):  # of a data set of TFDS
        path = max(versions, key=lambda file: _version(file.parent.name)).parent
    if (path / "dataset_info.json").is_file():
        return open_tfds(path, _tfds_split(str(path), split), **words)
    if any(next(path.glob(f"{depth}Annotations"), None) for depth in ("", "*/", "*/*/")):
        words["classes"] = words["classes"] or _read_classes(path / "classes.txt")
        return open_voc(path, split, **words)
    if described := find_yaml(path):
        return open_yolo(described, split, **words)
    if any(_annotation_folder(path / name).is_dir() for name in split):
        return _open_together(
            [functools.partial(_open_pair, path / name) for name in split], **words
        )
    if not split and _annotation_folder(path).is_dir():
        return _open_pair(path, **words)
    if not split and len(records := listed(path, "*.rec")) == 1:
        return _open_recordio(records[0], label_width=label_width, **words)
    jsons = (each for each in files_below(path) if each.suffix == ".json" and each.is_file())
    some = list(islice(jsons, 5))  # of many, a few tell
    if coco := next((each for each in some if _is_of_another_kind(each, _COCO)), None):
        raise UserError(
            f"{path}: it holds a file of COCO, {coco}. Give that file; its images are found beside "
            "it, in images/ or as COCO has them."
        )
    if any(_is_of_another_kind(each, _LABELME) for each in some):
        raise _not_read(path, "LabelMe's format")
    # Label Studio puts a notes.json beside them.
    if some and not split and not next(path.glob("labels/**/*.txt"), None):
        return open_json_folder(path, **words)
    _refuse_other_formats(path)
    if split:
        raise UserError(
            f"{path}: nothing there has the split {', '.join(split)}. Expected a folder of PASCAL "
            "VOC, YOLO's data.yaml, a data set of TFDS, or NAME/ and NAME_annotation/ for each "
            f"split NAME; the other formats have no splits:{FORMATS}"
        )
    raise UserError(f"{path} holds no data set that is known. Expected one of these:{FORMATS}")


def _refuse_other_formats(path: pathlib.Path) -> None:
    """A `UserError` for formats that users have, and that docs/data.md makes others of."""

    def holds(*patterns: str) -> bool:
        return any(next(path.glob(f"{depth}{p}"), None) for depth in ("", "*/") for p in patterns)

    # Darknet and LabelImg put text files and images into one folder.
    texts = (text for depth in ("", "*/") for text in path.glob(f"{depth}*.txt"))
    pairs = (text for text in texts if any(text.with_suffix(s).is_file() for s in IMAGE_SUFFIXES))
    if holds("labels") or next(pairs, None):
        raise UserError(
            f"{path}: this looks like YOLO's format, but there is no data.yaml with the classes. "
            'Write it as docs/data.md shows under "YOLO"'
        )
    if holds("*.xml"):
        found = "XML of LabelImg, or of VOC without its folders"
    elif path.suffix.lower() == ".csv" or holds("*.csv"):
        found = "a CSV of boxes"
    else:
        return
    raise _not_read(path, found)


def _not_read(path: pathlib.Path, found: str) -> UserError:
    return UserError(
        f"{path}: this looks like {found}, which is not read. Convert it as docs/data.md shows "
        'under "What is not read"'
    )


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdigit())


def _open_pair(images: pathlib.Path, **words) -> Source:
    return open_json_folder(images, _annotation_folder(images), **words)


def _annotation_folder(images: pathlib.Path) -> pathlib.Path:
    return images.with_name(f"{images.name}_annotation")


def _open_recordio(path: pathlib.Path, **words) -> Source:
    beside = (path.with_suffix(".classes.txt"), path.with_name("classes.txt"))
    return open_recordio(path, names=_first_classes(map(_read_classes, beside)), **words)


def _open_remote_recordio(url: str, **words) -> Source:
    path = stage(url)
    place = url.partition("?")[0]  # a version or a signature is that of one file
    stem, folder = place[: -len(".rec")], place.rpartition("/")[0]
    index = _stage_if_there(f"{stem}.idx")
    beside = map(_stage_if_there, (f"{stem}.classes.txt", f"{folder}/classes.txt"))
    names = _first_classes(file and _read_classes(file) for file in beside)
    return open_recordio(path, index=index, names=names, **words)


def _stage_if_there(url: str) -> pathlib.Path | None:
    try:
        return stage(url)
    except DataError as error:
        # Of a file that is not there, stores say so only to those who may list.
        if error.code in (codes.OBJECT_MISSING, codes.ACCESS_REFUSED):
            return None
        raise


def _first_classes(found: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    return next((names for names in found if names), None)


def _read_classes(path: pathlib.Path) -> tuple[str, ...] | None:
    """The class names in a file, one a line; None if there is no such file."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        problem = f"{twice!r} is listed twice, expected a different name on each line"
        raise DataError(codes.CLASS_NAMES_DISAGREE, str(path), problem, "Correct the names")
    return names


def _without_label(location: str) -> tuple[str, str | None]:
    """The place of a manifest and the label attribute that is asked for, as `x.manifest#NAME`."""
    place, separator, label = location.rpartition("#")
    if separator and place.lower().endswith(MANIFEST_SUFFIXES):
        return place, label or None
    return location, None


def _staged(location: str, *, with_neighbours: bool) -> pathlib.Path:
    """A local path; with neighbours if what belongs to a remote file stands beside it."""
    if not is_remote(location):
        return pathlib.Path(location)
    if not with_neighbours:
        return stage(location)
    folder, _, name = location.rpartition("/")
    if location.startswith("http"):
        raise UserError(
            f"{shown_url(location)}: the images of this file cannot be found, for a web server "
            "has no folders. Download them and give the local path"
        )
    return stage(folder) / name


def _tfds_split(location: str, split: tuple[str, ...]) -> str:
    if not split:
        raise UserError(f"{location} needs a split, got none: expected one such as 'train'")
    return "+".join(split)
