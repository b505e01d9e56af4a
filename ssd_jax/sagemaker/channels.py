"""The input channels of a training job -> locations that `data.open` reads.

Sources, at docs.aws.amazon.com/sagemaker/latest/dg/: object-detection.html has the kinds of
channels, your-algorithms-training-algo-running-container.html the files under /opt/ml.
"""

import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ssd_jax.data.open import MANIFEST_SUFFIXES
from ssd_jax.data.sources.base import what_is_there
from ssd_jax.data.sources.json_records import parse_json
from ssd_jax.data.sources.recordio_file import RecordFile
from ssd_jax.errors import UserError

RECORDIO = "application/x-recordio"
IMAGES = ("image/jpeg", "image/png", "application/x-image")
SPLITS = ("train", "validation", "test")
MODEL = "model"
# Not of the original: a file system as a channel, which several hosts need for their checkpoints.
CHECKPOINTS = "checkpoints"
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png"}


class Channels(NamedTuple):
    """Locations of the splits; "" for what was not given.

    `model` is the artefact to begin with, `checkpoints` a folder that all hosts share.
    """

    train: str
    validation: str
    test: str = ""
    model: str = ""
    checkpoints: str = ""


def read_config_file(root: pathlib.Path, name: str) -> dict[str, Any]:
    """The object in `ROOT/input/config/NAME`."""
    path = root / "input/config" / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: it cannot be read as JSON ({error}). SageMaker writes it; for a job of your "
            "own, docs/sagemaker.md describes it."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: got {value!r:.60}, expected a JSON object.")
    return value


def find_channels(root: pathlib.Path, *, hosts: int = 1) -> Channels:
    """What `inputdataconfig.json` and the folders under `ROOT/input/data` say.

    The stream of a channel in Pipe mode is first written to `ROOT/pipe`.

    Raises:
      UserError: a channel is missing, of another kind, or does not hold what its kind says.
    """
    config = read_config_file(root, "inputdataconfig.json")
    known = [*SPLITS, *(f"{split}_annotation" for split in SPLITS), MODEL, CHECKPOINTS]
    if unknown := sorted(set(config) - set(known)):
        raise _invalid(
            f"Additional properties are not allowed ({', '.join(map(repr, unknown))} "
            f"{'was' if len(unknown) == 1 else 'were'} unexpected)",
            f"the channels {', '.join(known)}",
        )
    for name in ("train", "validation"):
        if name not in config:
            raise _invalid(f"{name!r} is a required property", "the channels train and validation")
    for name, channel in config.items():
        if not isinstance(channel, dict):
            raise _invalid(f"the channel {name} is {channel!r:.60}", "an object that describes it")
        if hosts > 1 and channel.get("S3DistributionType") == "ShardedByS3Key":
            raise _invalid(
                f"the channel {name} has S3DistributionType ShardedByS3Key on {hosts} hosts",
                "FullyReplicated: each host picks its own part of every batch",
            )
    locations = {name: _split(root, name, config) for name in SPLITS if name in config}
    if MODEL in config:
        locations["model"] = _one_file(root / "input/data" / MODEL, (".tar.gz", ".tgz"))
    if CHECKPOINTS in config:
        folder = root / "input/data" / CHECKPOINTS
        _check_folder(folder)
        locations["checkpoints"] = str(folder)
    return Channels(**locations)


def _split(root: pathlib.Path, name: str, config: Mapping[str, Any]) -> str:
    """Where the data of a split are."""
    channel, annotations = config[name], f"{name}_annotation"
    kind = channel.get("ContentType") or ""
    kind = kind.partition(";")[0].strip()
    if kind not in ("", RECORDIO, *IMAGES):
        raise _invalid(
            f"channel {name}, ContentType: {kind!r} is not one of {[RECORDIO, *IMAGES]}",
            "the content type of the data",
        )
    folder = root / "input/data" / name
    if channel.get("TrainingInputMode") == "Pipe":
        if annotations in config:
            raise _invalid(
                f"the channels {name} and {annotations} are in Pipe mode",
                "File or FastFile mode for images with JSON files, or an augmented manifest",
            )
        return str(_read_stream(folder.with_name(f"{name}_0"), root / "pipe" / name))
    if annotations in config:
        for place in (folder, folder.with_name(annotations)):
            _check_folder(place)
        return str(folder)
    if manifests := _files(folder, MANIFEST_SUFFIXES):
        return _only(manifests, folder, MANIFEST_SUFFIXES)
    if kind in IMAGES:
        raise _invalid(
            f"{annotations!r} is a required property, for {name} is of type {kind}",
            "a channel with a JSON file for each image",
        )
    return _one_file(folder, (".rec",))


def _one_file(folder: pathlib.Path, suffixes: Sequence[str]) -> str:
    """The only file that ends so in the folder of a channel."""
    return _only(_files(folder, suffixes), folder, suffixes)


def _only(found: Sequence[pathlib.Path], folder: pathlib.Path, suffixes: Sequence[str]) -> str:
    if len(found) != 1:
        raise _invalid(
            f"the channel {folder.name} has {len(found)} files that end in {' or '.join(suffixes)}",
            f"exactly one in {folder}; {what_is_there(folder / '*')}",
        )
    return str(found[0])


def _files(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    _check_folder(folder)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name.lower().endswith(tuple(suffixes))
    )


def _check_folder(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; {what_is_there(folder)}.")


def _read_stream(pipe: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    """The stream of an epoch as a file: `PLACE.rec`, or a folder of images with JSON files.

    An epoch of ours picks its images in any order, which a stream does not allow, so it is read
    once and kept.
    """
    records, folder = place.with_name(f"{place.name}.rec"), place
    if records.exists() or folder.exists():
        return records if records.exists() else folder
    if not pipe.exists():
        raise UserError(f"{pipe}: there is no such pipe; {what_is_there(pipe)}.")
    place.parent.mkdir(parents=True, exist_ok=True)
    part = records.with_name(f".{records.name}")
    with pipe.open("rb") as stream, part.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
    payloads = _payloads(part)
    first = next(payloads, b"")
    if first[:2] not in _SUFFIXES:
        part.replace(records)
        return records
    _write_pairs(itertools.chain([first], payloads), folder, str(pipe))
    part.unlink()
    return folder


def _payloads(path: pathlib.Path) -> Iterator[bytes]:
    file = RecordFile(path)

    def refuse(error: UserError) -> None:
        raise error

    return map(file.payload, file.find_records(refuse).tolist())


def _write_pairs(payloads: Iterator[bytes], folder: pathlib.Path, where: str) -> None:
    """An augmented manifest comes as an image and its annotation in turn, a record each."""
    part = folder.with_name(f".{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for number, image in enumerate(payloads):
        annotation = parse_json(next(payloads, b""), f"{where}, annotation {number}")
        if image[:2] not in _SUFFIXES or not isinstance(annotation, dict):
            raise UserError(
                f"{where}, record {2 * number}: expected an image, JPEG or PNG, and then its "
                "annotation. Give AttributeNames in that order: the image's, the label's."
            )
        name = f"{number:07d}{_SUFFIXES[image[:2]]}"
        (part / name).write_bytes(image)
        text = json.dumps({"file": name, **annotation})
        (part / name).with_suffix(".json").write_text(text)
    part.replace(folder)


def _invalid(problem: str, expected: str) -> UserError:
    return UserError(f"Invalid input data configuration: {problem}. Expected {expected}.")
