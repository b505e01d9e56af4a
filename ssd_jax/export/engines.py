"""The engines that run the network of an exported detector: JAX, ONNX Runtime or OpenVINO.

An engine is a function from images to box deltas and class probabilities. JAX rebuilds the network
from its weights, on whatever device JAX has; the others read the ONNX model and run on the CPU.
Before an engine is used, it is tested on the probe: images in the folder, with the outputs that the
run itself had for them.
"""

import contextlib
import importlib
import math
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from ssd_jax.errors import UserError, check_choice
from ssd_jax.export.folder import ONNX, STABLEHLO, ModelFolder
from ssd_jax.export.stages import Stages, network_stage
from ssd_jax.hardware import processor
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.models.own import is_own
from ssd_jax.models.ssd import SSD
from ssd_jax.network import Network, build_network
from ssd_jax.ops.boxes import clip, decode
from ssd_jax.weights.load import load_weights
from ssd_jax.weights.maps import NameMap, Target, unchanged
from ssd_jax.weights.readers import WeightFile

Run = Callable[
    [Float[Array | np.ndarray, "B S S 3"]],
    tuple[Float[Array | np.ndarray, "B A 4"], Float[Array | np.ndarray, "B A channels"]],
]

# How far boxes and probabilities may be from those of the run: in float32, whatever the order of
# the sums, and with arithmetic of 8 to 11 bits (bfloat16, and TF32 on a GPU).
EXACT, ROUNDED = 1e-4, 3e-2
_TIMED_RUNS = 3
_OPENVINO_BF16 = "openvino-bf16"


class Engine(NamedTuple):
    """An engine that passed the probe."""

    name: str
    run: Run


class Parts(NamedTuple):
    """The input from which engines are built."""

    folder: ModelFolder
    config: ConfigDict
    stages: Stages


class Candidates(NamedTuple):
    """Names of engines, in the order in which they are to be tried.

    `why` is the reason if there is only one choice, else "". `seconds` are those per image that the
    export measured on a CPU like this one; if there are none, the engines are to be timed here.
    """

    names: tuple[str, ...]
    why: str = ""
    seconds: Mapping[str, float] = types.MappingProxyType({})

    @property
    def to_be_timed(self) -> bool:
        """Whether the fastest engine is to be found by timing it here."""
        return not self.why and not self.seconds


def find_candidates(asked: str, folder: ModelFolder) -> Candidates:
    """The engine of this name; for "auto" those of full precision that the export has not refused.

    "auto" leaves out engines that round to bfloat16, because speed must not cost accuracy unasked.

    Raises:
      UserError: there is no engine of this name.
    """
    check_choice("engine", asked, ("auto", *_BUILDERS))
    if asked != "auto":
        return Candidates((asked,), "it was chosen by name")
    if jax.default_backend() != "cpu" and not has_own_backbone(folder):
        return Candidates(("jax",), f"JAX has a {jax.default_backend()} here")
    if ONNX not in folder.files:
        return Candidates(("jax",), f"the others need {ONNX}, which is not in the folder")
    seconds, refused = _seconds_at_export(folder), _refused_at_export(folder)
    names = sorted(_possible(folder), key=lambda name: seconds.get(name, math.inf))
    return Candidates(tuple(name for name in names if name not in refused), seconds=seconds)


def choose_engine(candidates: Candidates, parts: Parts) -> tuple[Engine, str]:
    """The only candidate, or the fastest of several that passes; and the reason, in one line.

    Raises:
      UserError: no candidate can run here and passes the probe.
    """
    if candidates.why:
        return _tried(candidates.names[0], parts), candidates.why
    known = candidates.seconds
    passed: dict[str, Engine] = {}
    refused = _refused_at_export(parts.folder).items()
    seconds = {}
    notes = [f"{name} is excluded: {' '.join(reason.split())}" for name, reason in refused]
    for name in candidates.names:
        try:
            passed[name] = _tried(name, parts)
        except UserError as error:
            notes.append(f"{name} is excluded: {' '.join(str(error).split())}")
            continue
        if known:
            notes += [f"{each} {known[each] * 1000:.3g} ms per image" for each in known]
            return (
                passed[name],
                f"the fastest on this CPU, measured by the export: {'; '.join(notes)}",
            )
        seconds[name] = seconds_an_image(passed[name], parts.folder)
        notes.append(f"{name} {seconds[name] * 1000:.3g} ms per image")
    if not passed:
        raise UserError(f"{parts.folder.source}: no engine can run it. {' '.join(notes)}")
    return passed[min(seconds, key=seconds.get)], "the fastest here: " + "; ".join(notes)


def import_package(engine: str) -> None:
    """Imports the package of an engine that reads ONNX, if it is installed."""
    with contextlib.suppress(UserError):
        _import_onnxruntime() if engine == "onnxruntime" else _import_openvino()


def seconds_an_image(engine: Engine, folder: ModelFolder) -> float:
    """The median seconds per image of the engine's network on the probe."""
    images, *_ = folder.probe()
    images = images.astype(np.float32)
    seconds = []
    with device_of(engine.name):
        for _ in range(_TIMED_RUNS):
            start = time.perf_counter()
            jax.block_until_ready(engine.run(images))
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / len(images)


def _found_at_export(folder: ModelFolder) -> Mapping[str, Mapping[str, Any]]:
    return folder.meta.get("verification", {}).get("found", {})


def _refused_at_export(folder: ModelFolder) -> dict[str, str]:
    """The reason for each engine of full precision that failed when it was exported."""
    found = _found_at_export(folder)
    said = {name: found.get(name, {}).get("refused") for name in _possible(folder)}
    return {name: str(reason) for name, reason in said.items() if reason}


def _seconds_at_export(folder: ModelFolder) -> dict[str, float]:
    """Seconds per image of each engine that passed; {} if one was not tried, or on another CPU."""
    if folder.meta.get("verification", {}).get("processor") != processor():
        return {}
    found = _found_at_export(folder)
    timed = {name: found.get(name, {}).get("seconds") for name in _possible(folder)}
    seconds = {name: each for name, each in timed.items() if isinstance(each, float)}
    refused = _refused_at_export(folder).keys()
    return seconds if seconds.keys() | refused == set(_possible(folder)) else {}


def _tried(name: str, parts: Parts) -> Engine:
    run = _BUILDERS[name](parts)
    images, *expected = parts.folder.probe()
    allowed = _tolerance(name)
    with device_of(name):
        # The first run compiles, and each engine raises its own kinds of errors.
        try:
            outputs = jax.device_get(run(images.astype(np.float32)))
        except Exception as error:
            raise _refused(name, parts, error) from error
        furthest = _furthest(tuple(outputs), tuple(expected), parts.stages.anchors)
    if not furthest <= allowed:
        raise UserError(
            f"{parts.folder.source}: with the engine {name}, boxes or scores differ from those of "
            f"the run by {furthest:.2g}, expected at most {allowed:.0e}. Use another engine, or "
            "export the run again."
        )
    return Engine(name, run)


def _furthest(
    outputs: tuple[np.ndarray, np.ndarray],
    expected: tuple[np.ndarray, np.ndarray],
    anchors: Float[np.ndarray, "A 4"],
) -> float:
    """The largest difference of a box in the image, or of a probability."""
    shapes = [[each.shape for each in pair] for pair in (outputs, expected)]
    if shapes[0] != shapes[1] or shapes[0][0][1:] != anchors.shape:
        return np.inf
    boxes = jax.jit(jax.vmap(lambda deltas: clip(decode(deltas, anchors))))
    ours, theirs = boxes(outputs[0]), boxes(expected[0])
    return float(np.max([np.abs(ours - theirs).max(), np.abs(outputs[1] - expected[1]).max()]))


def _tolerance(name: str) -> float:
    on_accelerator = name == "jax" and jax.default_backend() != "cpu"
    return ROUNDED if on_accelerator or name == _OPENVINO_BF16 else EXACT


def installed_engines(folder: ModelFolder) -> tuple[str, ...]:
    """The engines of full precision that can run the folder here."""
    readable = [name for name in _possible(folder) if name == "jax" or ONNX in folder.files]
    return tuple(sorted(name for name in readable if find_spec(name)))


def _possible(folder: ModelFolder) -> tuple[str, ...]:
    """The engines of full precision, without JAX if it cannot build the network alone."""
    without = ("jax",) if has_own_backbone(folder) else ()
    return tuple(name for name in _FULL_PRECISION if name not in without)


def device_of(engine: str) -> contextlib.AbstractContextManager:
    """The device of the programs before and after an engine: that of the engine."""
    if engine == "jax" or jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS=cuda
        return contextlib.nullcontext()


def read_variables(folder: ModelFolder, model: SSD) -> Any:
    """The variables of the model, from the weights of the folder, which must fit exactly."""
    arrays = folder.weights()
    own = NameMap("an exported detector", {name: Target(name, unchanged) for name in arrays})
    variables, _ = load_weights(
        variable_shapes(model, folder.meta["model"]["image_size"]),
        WeightFile(folder.source, arrays, {}),
        name_map=own,
    )
    return variables


def rebuilt_network(folder: ModelFolder, config: ConfigDict) -> Network:
    """The network of the folder, built from the package's own parts; imports nothing by name.

    Raises:
      UserError: it has a custom backbone.
    """
    if has_own_backbone(folder):
        raise UserError(
            f"{folder.source}: its backbone is {config.model.backbone}, and code that a file names "
            "is never imported. Export the run with --onnx and use another engine, or run "
            f'{STABLEHLO} as described in docs/export.md under "Without this package".'
        )
    return build_network(config, len(folder.classes))


def has_own_backbone(folder: ModelFolder) -> bool:
    """Whether the network has a custom backbone, which the package cannot build alone."""
    return is_own(folder.meta["model"]["backbone"])


def _jax(parts: Parts) -> Run:
    model = rebuilt_network(parts.folder, parts.config).model
    variables = jax.device_put(read_variables(parts.folder, model))
    network = jax.jit(network_stage(parts.config, model))
    return lambda images: network(variables, images)


def _onnxruntime(parts: Parts) -> Run:
    onnxruntime = _import_onnxruntime()
    model = _read_onnx(parts.folder)
    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:  # they have no common base
        raise _refused("onnxruntime", parts, error) from error
    return lambda images: tuple(session.run(None, {"images": np.asarray(images)}))


def _openvino(parts: Parts, precision: str = "f32") -> Run:
    openvino = _import_openvino()
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("this CPU has no bfloat16 arithmetic")
    model = _read_onnx(parts.folder)
    try:
        compiled = core.compile_model(
            core.read_model(model),
            "CPU",
            {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"},
        )
    except RuntimeError as error:
        raise _refused("openvino", parts, error) from error

    def run(images):
        # A new request for each call, because threads must not share one.
        results = compiled.create_infer_request().infer([np.asarray(images)])
        return results[0], results[1]

    return run


def _read_onnx(folder: ModelFolder) -> bytes:
    model = bytes(folder.file(ONNX))
    # A tensor in another file (onnx.proto, external_data) has an entry with this key. Runtimes look
    # for the file next to the model or in the working directory, where no hash is checked.
    if b"location" in model:
        raise UserError(
            f"{folder.source}: {ONNX} may have a tensor in another file, which is not verified; "
            "expected all of them inside. Export the run again."
        )
    return model


_FULL_PRECISION = {"openvino": _openvino, "onnxruntime": _onnxruntime, "jax": _jax}
_BUILDERS = _FULL_PRECISION | {_OPENVINO_BF16: lambda parts: _openvino(parts, "bf16")}


def _import_onnxruntime() -> Any:
    return _installed("onnxruntime", extra="onnx")


def _import_openvino() -> Any:
    # Importing OpenVINO sends telemetry from a forked process, and a fork may hang a program that
    # uses JAX. Without this module OpenVINO sends nothing.
    silent = {"openvino_telemetry": None, "openvino_telemetry.backend": None}
    with _replaced(sys.modules, silent):
        return _installed("openvino", extra="openvino")


def _installed(package: str, *, extra: str) -> Any:
    if find_spec(package) is None:
        raise UserError(f"{package} is not installed: pip install 'ssd-jax[{extra}]'.")
    return importlib.import_module(package)


@contextlib.contextmanager
def _replaced(mapping, changes):
    before = {name: mapping[name] for name in changes if name in mapping}
    mapping.update(changes)
    try:
        yield
    finally:
        for name in changes:
            mapping.pop(name, None)
        mapping.update(before)


def _refused(engine: str, parts: Parts, error: Exception) -> UserError:
    return UserError(
        f"{parts.folder.source}: {engine} cannot run it: {type(error).__name__} "
        f"{str(error).partition(chr(10))[0]}. Use another engine, or export the run again."
    )
