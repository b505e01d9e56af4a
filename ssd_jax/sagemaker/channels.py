"""The input channels of a training job -> locations that `data.open` reads.

Sources, at docs.aws.amazon.com/sagemaker/latest/dg/: object-detection.html for the kinds of
channels, your-algorithms-training-algo-running-container.html for the files under /opt/ml.
"""

import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ssd_jax.data.open import MANIFEST_SUFFIXES
from ssd_jax.data.sources.json_records import parse_json, shown
from ssd_jax.data.sources.recordio_file import RecordFile
from ssd_jax.errors import DataError, UserError, what_is_there
from ssd_jax.files import files_below
from ssd_jax.train.checkpoint_manifest import has_trained

RECORDIO = "application/x-recordio"
IMAGES = ("image/jpeg", "image/png", "application/x-image")
SPLITS = ("train", "validation", "test")
MODEL = "model"
# Not in the original: a file system as a channel, which several hosts need for their checkpoints.
CHECKPOINTS = "checkpoints"
MODES = ("File", "FastFile", "Pipe")
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png"}


class Channels(NamedTuple):
    """Locations of the splits; "" if not given.

    `model` is the artefact to start from, `checkpoints` a folder that all hosts share.
    """

    train: str
    validation: str
    test: str = ""
    model: str = ""
    checkpoints: str = ""


def read_config_file(root: pathlib.Path, name: str) -> dict[str, Any]:
    """The object in `ROOT/input/config/NAME`."""
    path = root / "input/config" / name
    whose = "SageMaker writes it; for a job of your own, docs/sagemaker.md has an example."
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file. {whose}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}). {whose}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: got {value!r:.60}, expected a JSON object.")
    return value


def find_channels(root: pathlib.Path, *, hosts: int = 1) -> Channels:
    """The channels of `inputdataconfig.json` and the folders under `ROOT/input/data`.

    The stream of a channel in Pipe mode is first written to `ROOT/pipe`. A copy that is there
    already is used only if the job resumes a run, which has read the stream before.

    Raises:
      UserError: a channel is missing, or of another kind, or its content is not of its kind.
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
        if (images := name.removesuffix("_annotation")) not in config:
            raise _invalid(f"the channel {name} has no channel {images}", "both or none")
        if (mode := channel.get("TrainingInputMode") or MODES[0]) not in MODES:
            raise _invalid(
                f"channel {name}, TrainingInputMode: {mode!r} is not one of {list(MODES)}",
                "the mode of the channel; the default is File",
            )
        if hosts > 1 and channel.get("S3DistributionType") == "ShardedByS3Key":
            raise _invalid(
                f"the channel {name} has S3DistributionType ShardedByS3Key on {hosts} hosts",
                "FullyReplicated: each host takes its own part of every batch",
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
    """The location of the data of a split."""
    channel, annotations = config[name], f"{name}_annotation"
    kind = str(channel.get("ContentType") or "").partition(";")[0].strip()
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
        shared = CHECKPOINTS in config
        goes_on = has_trained(root / "input/data" / CHECKPOINTS if shared else root / CHECKPOINTS)
        pipe = folder.with_name(f"{name}_0")
        return str(_read_stream(pipe, root / "pipe" / name, goes_on=goes_on))
    if annotations in config:
        for place in (folder, folder.with_name(annotations)):
            _check_folder(place)
        return str(folder)
    records, manifests = _files(folder, (".rec",)), _files(folder, MANIFEST_SUFFIXES)
    if kind == RECORDIO and len(records) == 1:
        return str(records[0])
    if records and manifests:
        found = ", ".join(str(path.relative_to(folder)) for path in (*records, *manifests)[:10])
        raise _invalid(
            f"the channel {name} has records and manifests: {found}", f"one of them in {folder}"
        )
    if manifests:
        return _only(manifests, folder, MANIFEST_SUFFIXES) + _label_attribute(name, channel)
    if kind in IMAGES:
        raise _invalid(
            f"{annotations!r} is a required property, because {name} is of type {kind}",
            "a channel with a JSON file for each image",
        )
    return _only(records, folder, (".rec",))


def _label_attribute(name: str, channel: Mapping[str, Any]) -> str:
    """The suffix of a manifest's location that names the attribute; "" if there is only one."""
    attributes = channel.get("AttributeNames") or []
    if not isinstance(attributes, list) or not all(isinstance(each, str) for each in attributes):
        raise _invalid(
            f"channel {name}, AttributeNames: got {attributes!r:.60}",
            "the names of the image attribute and of the label attribute, in that order",
        )
    return f"#{attributes[1]}" if len(attributes) > 1 else ""


def _one_file(folder: pathlib.Path, suffixes: Sequence[str]) -> str:
    """The only file with one of the suffixes in the folder of a channel."""
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
    return [
        path
        for path in sorted(files_below(folder))
        if path.is_file() and path.name.lower().endswith(tuple(suffixes))
    ]


def _check_folder(folder: pathlib.Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; {what_is_there(folder)}.")


def _read_stream(pipe: pathlib.Path, place: pathlib.Path, *, goes_on: bool) -> pathlib.Path:
    """The stream of an epoch as a file: `PLACE.rec`, or a folder of images with JSON files.

    Our epochs read images in any order, which a stream does not allow, so it is read once and kept,
    also for a later job that resumes the run (`goes_on`).
    """
    records, folder = place.with_name(f"{place.name}.rec"), place
    if goes_on and (records.exists() or folder.exists()):
        return records if records.exists() else folder
    if not pipe.exists():
        raise UserError(f"{pipe}: there is no such pipe; {what_is_there(pipe)}.")
    records.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    scratch = place.with_name(f".{place.name}")
    shutil.rmtree(scratch, ignore_errors=True)  # of a job that was killed
    scratch.mkdir(parents=True)
    part = scratch / "stream"
    try:
        with pipe.open("rb") as stream, part.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 20)
        return _sort_out(part, records, folder, str(pipe))
    except DataError as error:
        # The user knows the pipe, not the copy.
        where = error.where.replace(str(part), str(pipe))
        raise DataError(error.code, where, error.problem, error.fix) from error
    finally:
        shutil.rmtree(scratch)


def _sort_out(
    part: pathlib.Path, records: pathlib.Path, folder: pathlib.Path, where: str
) -> pathlib.Path:
    """Turns the copy of a stream into records or a folder of images, by its first payload."""
    payloads = _payloads(part)
    first = next(payloads, b"")
    if not first:
        raise UserError(f"{where}: the stream is empty. Give the channel its data.")
    if _is_json(first):
        raise _no_pair(where, 0, "got a JSON text")
    if first[:2] not in _SUFFIXES:
        return part.replace(records)
    pairs = _write_pairs(itertools.chain([first], payloads), part.with_name("pairs"), where)
    return pairs.replace(folder)


def _is_json(payload: bytes) -> bool:
    """Whether it is a JSON object; a record of 123 numbers also begins with {, and three zeros."""
    head = payload.lstrip()[:4]
    return head.startswith(b"{") and b"\0" not in head


def _payloads(path: pathlib.Path) -> Iterator[bytes]:
    file = RecordFile(path)

    def refuse(error: UserError) -> None:
        raise error

    return map(file.payload, file.find_records(refuse).tolist())


def _write_pairs(payloads: Iterator[bytes], folder: pathlib.Path, where: str) -> pathlib.Path:
    """Writes the images and annotations of an augmented manifest, which arrive alternately."""
    folder.mkdir()
    for number, image in enumerate(payloads):
        if image[:2] not in _SUFFIXES:
            raise _no_pair(where, 2 * number, f"got a record that begins with {image[:8]!r}")
        text = next(payloads, None)
        if text is None:
            raise _no_pair(where, 2 * number + 1, "the stream ends here")
        try:
            annotation = parse_json(text, where)
        except DataError as error:
            raise _no_pair(where, 2 * number + 1, error.problem) from error
        if not isinstance(annotation, dict):
            raise _no_pair(where, 2 * number + 1, f"got {shown(annotation)}")
        name = f"{number:07d}{_SUFFIXES[image[:2]]}"
        (folder / name).write_bytes(image)
        text = json.dumps({**annotation, "file": name})
        (folder / name).with_suffix(".json").write_text(text)
    return folder


def _no_pair(where: str, record: int, problem: str) -> UserError:
    return UserError(
        f"{where}, record {record}: {problem}; expected images (JPEG or PNG), each followed by its "
        "annotation. Give AttributeNames in that order: the image attribute, the label attribute."
    )


def _invalid(problem: str, expected: str) -> UserError:
    return UserError(f"Invalid input data configuration: {problem}. Expected {expected}.")
