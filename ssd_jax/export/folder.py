"""The folder of an exported detector, or its model.tar.gz: read without trusting it.

Reading runs nothing in it: it holds JSON, arrays, and programs that stay bytes until an engine is
opened. `meta.json` has the size and the SHA-256 of every other file.
"""

import gzip
import hashlib
import json
import os
import pathlib
import tarfile
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from jaxtyping import Float
from ml_collections import ConfigDict
from safetensors import SafetensorError

from ssd_jax.config import default_config, flat_items
from ssd_jax.config_check import check
from ssd_jax.data.remote import shown_url
from ssd_jax.data.storage import stage
from ssd_jax.errors import UserError, first_line, some_of
from ssd_jax.weights.archive import is_archive, read_archive

META = "meta.json"
WEIGHTS = "weights.safetensors"
STABLEHLO = "model.stablehlo"
ONNX = "model.onnx"
ANCHORS = "anchors.safetensors"  # for the outputs of the ONNX model, which it does not decode
PROBE = "probe.safetensors"
PROBE_ARRAYS = ("images", "box_deltas", "probabilities")
# A reader refuses any other version, because it defines the meaning of meta.json.
SCHEMA_VERSION = 1

# The sections of a config that an exported detector is rebuilt from.
SECTIONS = ("model", "anchors", "preprocess", "detect")

# Far more than any detector needs, and far less than would exhaust a machine.
_LARGEST_META = 2**24  # bytes
_LARGEST_FILE = 2**31
MOST_DETECTIONS = 100_000  # per image
LARGEST_SIDE = 8192  # px, of the canvas and of the network's input


class ModelFolder(NamedTuple):
    """The content of an exported folder or its archive, checked against meta.json."""

    source: str
    meta: dict[str, Any]
    files: dict[str, memoryview]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their ids."""
        return tuple(self.meta["classes"])

    def config(self) -> ConfigDict:
        """The settings that the network and its detections depend on; the rest do not matter."""
        config = default_config()
        config.steps = 1  # a valid config needs a length of training
        try:
            given = dict(flat_items(ConfigDict({name: self.meta[name] for name in SECTIONS})))
            for name, default in flat_items(config):
                if isinstance(given.get(name), bool) and not isinstance(default, bool):
                    raise ValueError(f"{name}: got {given[name]}, expected a number or a text")
            config.update_from_flattened_dict(given)
            config.data.canvas = self.meta["canvas"]
            # Of training alone, and not in the file; the check wants it to suit the model.
            if config.model.class_activation != "softmax":
                config.loss.class_loss = "focal"
            config.batch_size = max(1, config.model.batch_norm_group or 1)
            check(config)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise _damaged(self.source, f"in {META}: {first_line(error)}") from error
        sides = config.data.canvas, config.model.image_size, *config.detect.image_sizes
        if max(sides) > LARGEST_SIDE:
            raise _damaged(self.source, f"in {META}: a side of more than {LARGEST_SIDE} px")
        if max(config.detect.candidates, config.detect.max_detections) > MOST_DETECTIONS:
            raise _damaged(self.source, f"in {META}: more than {MOST_DETECTIONS:,} detections")
        return config

    def weights(self) -> dict[str, np.ndarray]:
        """The variables of the network, "params/heads/box_0/kernel" and so on."""
        return self._arrays(WEIGHTS)

    def probe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images uint8 [B, S, S, 3], and the run's box deltas and probabilities for them."""
        arrays = self._arrays(PROBE)
        if arrays.keys() != set(PROBE_ARRAYS):
            raise _damaged(self.source, f"{PROBE} holds {', '.join(sorted(arrays))}")
        channels = len(self.classes) + 1  # one for the background, also with sigmoids
        if arrays["probabilities"].shape[-1:] != (channels,):
            raise _damaged(
                self.source,
                f"{META} has {len(self.classes)} classes, but {PROBE} has probabilities of the "
                f"shape {arrays['probabilities'].shape}, expected {channels} channels",
            )
        return tuple(arrays[name] for name in PROBE_ARRAYS)

    def anchors(self) -> Float[np.ndarray, "A 4"] | None:
        """The anchors of the outputs of the ONNX model; None without such a model."""
        if ANCHORS not in self.files:
            return None
        arrays = self._arrays(ANCHORS)
        anchors = arrays.get("anchors")
        if anchors is None or anchors.ndim != 2 or anchors.shape[1] != 4:
            raise _damaged(self.source, f"{ANCHORS} holds no anchors")
        return anchors

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        try:
            return safetensors.numpy.load(bytes(self.file(name)))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _damaged(self.source, f"{name}: {error}") from error

    def file(self, name: str) -> memoryview:
        """The bytes of a file."""
        if name not in self.files:
            raise UserError(
                f"{self.source} has no {name}, only {', '.join(sorted(self.files))}. "
                "Export the run again, with --onnx for an ONNX model."
            )
        return self.files[name]


def read_folder(source: str | os.PathLike) -> ModelFolder:
    """The folder, or the tar archive of one, that `ssd-jax export` wrote; or the URL of either.

    Raises:
      UserError: a file is missing, cut short, too large, or not the one that was exported.
    """
    source = place = os.fspath(source)
    if "://" in source:
        place, source = stage(source, names=(META, *_FILES)), shown_url(source)
    if is_archive(place):
        files = read_archive(place)
    elif os.path.isfile(os.path.join(place, META)):
        files = {
            name: _read(pathlib.Path(place, name), limit)
            for name, limit in {META: _LARGEST_META, **dict.fromkeys(_FILES, _LARGEST_FILE)}.items()
            if os.path.isfile(os.path.join(place, name))
        }
    else:
        files = dict.fromkeys(os.listdir(place) if os.path.isdir(place) else ())
    if META not in files:
        raise _no_detector(source, files)
    meta = _read_meta(files.pop(META), source)
    if missing := meta["files"].keys() - files.keys():
        raise _damaged(source, f"{', '.join(sorted(missing))} is missing")
    own = {name: files[name] for name in meta["files"]}
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
        for (name, said), digest in zip(
            meta["files"].items(), pool.map(_sha256, own.values()), strict=True
        ):
            if len(own[name]) != said["bytes"] or digest != said["sha256"]:
                raise _damaged(source, f"{name} is not the file that was exported")
    return ModelFolder(source, meta, own)


def describe_files(folder: pathlib.Path) -> dict[str, dict[str, int | str]]:
    """Size and SHA-256 of each file of the artefact that is in the folder."""
    found = {
        name: _read(folder / name, _LARGEST_FILE) for name in _FILES if (folder / name).is_file()
    }
    return {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in found.items()}


def write_archive(folder: pathlib.Path, archive: pathlib.Path) -> None:
    """Packs the files of a folder, without user names and times: equal files give equal bytes."""
    with (
        archive.open("wb") as file,
        # Weights do not compress; the lowest level saves a minute.
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted(folder.iterdir()):
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(member, content)


_FILES = (WEIGHTS, STABLEHLO, ONNX, ANCHORS, PROBE)


def _read(path: pathlib.Path, limit: int) -> memoryview:
    if path.stat().st_size > limit:
        raise _damaged(str(path), f"it has more than {limit:,} bytes")
    return memoryview(path.read_bytes())


def _read_meta(data: memoryview, source: str) -> dict[str, Any]:
    if len(data) > _LARGEST_META:
        raise _damaged(source, f"{META} has more than {_LARGEST_META:,} bytes")
    try:
        meta = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise _damaged(source, f"{META} is not JSON ({error})") from error
    version = meta.get("schema_version") if isinstance(meta, dict) else None
    if version is True or version != SCHEMA_VERSION:
        raise UserError(
            f"{source}: {META} has schema version {version!r}, expected {SCHEMA_VERSION}. Export "
            "the run again with this version of ssd_jax."
        )
    if not _is_complete(meta):
        raise _damaged(source, f"{META} lacks classes, canvas, or the list of files")
    if not _is_verification(meta.get("verification", {})):
        raise _damaged(source, f"the verification in {META} lacks the results of the engines")
    return meta


def _is_complete(meta: Mapping[str, Any]) -> bool:
    classes, files = meta.get("classes"), meta.get("files")
    return (
        isinstance(classes, list)
        and len(classes) > 0
        and all(isinstance(name, str) for name in classes)
        and isinstance(meta.get("canvas"), int)
        and not isinstance(meta["canvas"], bool)
        and isinstance(files, dict)
        and {WEIGHTS, PROBE} <= files.keys() <= set(_FILES)
        and all(
            isinstance(said, dict) and {"bytes", "sha256"} <= said.keys() for said in files.values()
        )
        and all(isinstance(meta.get(name), dict) for name in SECTIONS)
    )


def _is_verification(value: Any) -> bool:
    found = value.get("found", {}) if isinstance(value, dict) else None
    return isinstance(found, dict) and all(isinstance(each, dict) for each in found.values())


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _no_detector(source: str, names: Collection[str]) -> UserError:
    advice = "Give the folder or the .tar.gz that `ssd-jax export` wrote."
    if any(name.endswith(".params") for name in names):
        advice = (
            "To SageMaker's own model.tar.gz, `ssd-jax weights import` gives the folder of a run, "
            "and `ssd-jax export` makes a detector of that."
        )
    # Without names for a URL, of which only the files of a detector were fetched.
    holds = f"; it contains {some_of(list(names))}" if names else ""
    return UserError(f"{source} is not an exported detector{holds}. {advice}")


def _damaged(source: str, problem: str) -> UserError:
    problem = problem.rstrip(".")
    return UserError(f"{source}: damaged: {problem}. Fetch it again, or export the run again.")
