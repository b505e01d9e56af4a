"""A run -> the folder of an exported detector, verified before it gets its name."""

import contextlib
import hashlib
import json
import os
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ssd_jax.config import CONFIG_FILE, read_config
from ssd_jax.data.decode import decode_image
from ssd_jax.data.remote import open_to_write, split_url
from ssd_jax.data.shapes import draw_shapes
from ssd_jax.data.storage import list_objects, safe_names, upload
from ssd_jax.detector import Detector, Trained, load_trained
from ssd_jax.errors import UserError
from ssd_jax.experiment import build_source
from ssd_jax.export import folder as files
from ssd_jax.export.onnx_writer import OPSET, to_onnx
from ssd_jax.export.stablehlo import PLATFORMS, to_stablehlo
from ssd_jax.export.stages import exported_anchors, network_stage
from ssd_jax.export.verify import verify
from ssd_jax.files import make_folder, write_json
from ssd_jax.hardware import processor
from ssd_jax.locks import remove_unfinished, unfinished
from ssd_jax.network import build_predict
from ssd_jax.recipes import recipe_changes
from ssd_jax.report.starts import installed_version
from ssd_jax.runs.log import REPORT_FILE
from ssd_jax.sharding import make_mesh

# Images that the exported detector is compared on; an even number.
_PICTURES = 8
_VERSIONS = ("ssd_jax", "jax", "jaxlib", "flax", "numpy", "onnx", "onnxruntime", "openvino")


def export_run(
    workdir: pathlib.Path,
    out: str | os.PathLike,
    *,
    step: str | None = None,
    onnx: bool = False,
    archive: bool = True,
) -> dict[str, Any]:
    """Writes the detector of a run as the folder `out` and, with `archive`, as `out`.tar.gz.

    `step` is as in `load_trained`. The exported detector computes in float32, even if the run used
    bfloat16, and has one image size, even if the run was measured at several. It appears under its
    name only complete and verified; `out` may be a URL of a bucket. Returns the content of
    meta.json.

    Raises:
      UserError: there is something at `out` already, or the exported detector does not find what
        the run's own does.
    """
    if (name := os.fspath(out).rstrip("/")).endswith(".tar.gz"):
        raise UserError(
            f"{name}: expected the name of a folder. Give --out {name.removesuffix('.tar.gz')}; "
            "the archive is written next to it."
        )
    options = {"step": step, "onnx": onnx, "archive": archive}
    if "://" not in os.fspath(out):
        return _export(workdir, pathlib.Path(out), **options)
    url = os.fspath(out).rstrip("/")
    _check_vacant(url, archive=archive)
    with tempfile.TemporaryDirectory() as scratch:
        # Messages show the name of this folder.
        folder = pathlib.Path(scratch, safe_names(url)[-1])
        meta = _export(workdir, folder, **options)
        _send(folder, url, archive=archive)
    return meta


def _check_vacant(url: str, *, archive: bool) -> None:
    open_to_write(url)
    if not split_url(url)[2]:
        raise UserError(f"{url} is a bucket without a name in it. Give --out {url}/NAME.")
    places = [url, f"{url}.tar.gz"][: 1 + archive]
    if any(list_objects(place) for place in places):
        raise UserError(f"{' or '.join(places)} exists already. Choose another --out.")


def _send(folder: pathlib.Path, url: str, *, archive: bool) -> None:
    """Uploads what was exported, all of it or nothing."""
    paths = sorted(folder.iterdir(), key=lambda path: path.name == files.META)
    plan = {f"{url}/{path.name}": path for path in paths}
    if archive:
        plan = {f"{url}.tar.gz": folder.with_name(f"{folder.name}.tar.gz")} | plan
    begun = []
    try:
        for target, path in plan.items():
            begun.append(target)
            upload(path, target)
    except BaseException:
        store = open_to_write(url)
        # An error here must not hide the first one.
        with contextlib.suppress(Exception):
            for target in reversed(begun):
                with contextlib.suppress(FileNotFoundError):
                    store.remove(target)
        raise


def _export(
    workdir: pathlib.Path, out: pathlib.Path, *, step: str | None, onnx: bool, archive: bool
) -> dict[str, Any]:
    workdir, out = pathlib.Path(workdir), out.absolute()
    packed = out.with_name(f"{out.name}.tar.gz")
    remove_unfinished(out)
    if (out.exists() and any(out.iterdir())) or (archive and packed.exists()):
        raise UserError(f"{out} or {packed} exists already. Choose another --out.")
    config = read_config(workdir / CONFIG_FILE)
    meta = {
        "trained_in": config.model.dtype,
        "measured_at": config.detect.image_sizes or (config.model.image_size,),
    }
    config.model.dtype, config.detect.image_sizes = "float32", ()
    trained = load_trained(config, workdir, mesh=make_mesh(jax.local_devices()[:1]), step=step)
    meta |= _describe(config, trained, workdir)
    is_new = not out.exists()
    make_folder(out)
    try:
        # Inside `out`, which may be a file system of its own, e.g. in a container.
        with unfinished(out) as scratch:
            new = scratch / out.name
            new.mkdir()
            # In float32 on a GPU too, whose default is TF32.
            with jax.default_matmul_precision("highest"):
                meta |= _write_files(new, config, trained, onnx=onnx)
                meta["files"] = files.describe_files(new)
                write_json(new / files.META, meta)
                meta["verification"] = _verified(new, config, trained, scratch)
            write_json(new / files.META, meta)
            if archive:
                files.write_archive(new, scratch / packed.name)
                files.read_folder(scratch / packed.name)
                shutil.move(scratch / packed.name, packed)
            # A folder counts as an exported detector once it has meta.json, so that comes last.
            for name in (*meta["files"], files.META):
                (new / name).replace(out / name)
    except BaseException:
        # An error here must not hide the first one.
        with contextlib.suppress(OSError):
            if archive:
                packed.unlink(missing_ok=True)
            for name in (*meta.get("files", ()), files.META):
                (out / name).unlink(missing_ok=True)
            if is_new:
                out.rmdir()
        raise
    return meta


def _verified(
    folder: pathlib.Path, config: ConfigDict, trained: Trained, scratch: pathlib.Path
) -> dict[str, Any]:
    """The verification in meta.json, which every form of the exported detector passed."""
    pictures, kind = _pictures(config, trained.classes)
    expected = Detector(config, trained)(pictures)
    decoded = [decode_image(data, kind, config.data.canvas) for data in pictures]
    return {
        "pictures": f"{len(pictures)} {kind}",
        "detections": sum(len(found.valid) for found in expected),
        "processor": processor(),
        "found": verify(
            folder,
            np.stack([canvas for canvas, _, _ in decoded]),
            np.array([extent for _, extent, _ in decoded], np.int32),
            expected,
            scratch=scratch,
        ),
    }


def _write_files(
    new: pathlib.Path, config: ConfigDict, trained: Trained, *, onnx: bool
) -> dict[str, Any]:
    """Writes all files except meta.json, and returns its description of the programs."""
    weights = flatten_dict(jax.device_get(trained.variables), sep="/")
    network = network_stage(config, trained.network.model)
    side, canvas = config.model.image_size, config.data.canvas
    (new / files.WEIGHTS).write_bytes(safetensors.numpy.save(weights))
    (new / files.PROBE).write_bytes(safetensors.numpy.save(_probe(network, trained, side)))
    predict = build_predict(config, trained.network)
    (new / files.STABLEHLO).write_bytes(to_stablehlo(predict, weights, canvas))
    detections = "boxes, scores, labels, valid as in ssd_jax.types.Detections"
    about: dict[str, Any] = {
        "stablehlo": {
            "platforms": PLATFORMS,
            "inputs": f"weights by name, canvas uint8 [batch, {canvas}, {canvas}, 3], "
            "extent int32 [batch, 2]",
            "outputs": detections,
        }
    }
    if onnx:
        host = jax.device_get(trained.variables)
        model = to_onnx(
            lambda images: network(host, images),
            (side, side, 3),
            input_name="images",
            output_names=files.PROBE_ARRAYS[1:],
        )
        (new / files.ONNX).write_bytes(model)
        anchors = np.asarray(exported_anchors(config, trained.network), np.float32)
        (new / files.ANCHORS).write_bytes(safetensors.numpy.save({"anchors": anchors}))
        about["onnx"] = {
            "opset": OPSET,
            "inputs": f"images float32 [batch, {side}, {side}, 3], RGB pixel values 0 to 255",
            "outputs": "box_deltas, and class probabilities with background first, of each anchor",
            "nms": f"outside: decoding, from {files.ANCHORS}, and non-maximum suppression are not "
            "in the model",
        }
    return about


def _probe(network: Callable, trained: Trained, side: int) -> dict[str, np.ndarray]:
    """Images and the network's outputs for them, with which any engine can be tested.

    Synthetic, because an exported detector may be passed on, and images of a data set be private.
    """
    images = np.zeros((1, side, side, 3), np.uint8)
    drawn, _ = draw_shapes(0, 0, image_size=side)
    images[0, : drawn.shape[0], : drawn.shape[1]] = drawn
    outputs = jax.jit(network)(trained.variables, images.astype(np.float32))
    arrays = (images, *map(np.asarray, jax.device_get(outputs)))
    return dict(zip(files.PROBE_ARRAYS, arrays, strict=True))


def _pictures(config: ConfigDict, classes: Sequence[str]) -> tuple[list[bytes], str]:
    """Encoded images spread over the validation split; synthetic ones if it cannot be read."""
    config = config.copy_and_resolve_references()
    config.data.update({"doctor": False, "problems": "skip"})
    try:
        source = build_source(config, "val", classes=tuple(classes))
        chosen = np.linspace(0, len(source) - 1, _PICTURES).astype(int)
        pictures = [source[index].image for index in chosen.tolist()]
        for data in pictures:
            decode_image(data, "validation", config.data.canvas)
        return pictures, "images of the validation split"
    except (UserError, OSError):
        drawn = (
            draw_shapes(0, index, image_size=config.data.canvas)[0] for index in range(_PICTURES)
        )
        encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in drawn]
        return encoded, "synthetic images, because the validation split could not be read"


def _describe(config: ConfigDict, trained: Trained, workdir: pathlib.Path) -> dict[str, Any]:
    """The description of the detector and its origin in meta.json."""
    report = _report(workdir, trained.step)
    protocol = report.get("protocol")
    return {
        "schema_version": files.SCHEMA_VERSION,
        "classes": trained.classes,
        "image_size": config.model.image_size,
        "canvas": config.data.canvas,
        **{name: config[name].to_dict() for name in files.SECTIONS},
        "recipe": config.recipe,
        "recipe_changes": recipe_changes(config),
        "step": trained.step,
        "metrics": report.get("metrics"),
        # Without the path of the data, because an exported detector may be passed on.
        "protocol": protocol and {name: said for name, said in protocol.items() if name != "root"},
        "fingerprints": {
            "config": hashlib.sha256((workdir / CONFIG_FILE).read_bytes()).hexdigest(),
            **{split: said["fingerprint"] for split, said in report.get("data", {}).items()},
        },
        "versions": {"python": platform.python_version()}
        | {name: version for name in _VERSIONS if (version := installed_version(name))},
    }


def _report(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """The report of the run, if it is about the exported step."""
    path = workdir / REPORT_FILE
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return report if report.get("step") == step else {}
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: this is not a complete report of a run ({error}). Copy the folder again, or "
            "remove the file to export without its metrics."
        ) from error
