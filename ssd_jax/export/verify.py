"""Checks in a new process that an exported detector finds what the run's own detector found.

`python -m ssd_jax.export.verify FOLDER CASES` prints its results as JSON, or fails.
"""

import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import Int, UInt8

from ssd_jax.children import run_child
from ssd_jax.errors import UserError
from ssd_jax.export.engines import EXACT, installed_engines
from ssd_jax.export.exported import open_exported
from ssd_jax.export.folder import STABLEHLO, ModelFolder, read_folder
from ssd_jax.types import Detections

# Programs get batches of two, although the run's detector got single images, because the batch
# size must not matter.
_BATCH = 2


def verify(
    folder: pathlib.Path,
    canvas: UInt8[np.ndarray, "N H W 3"],
    extent: Int[np.ndarray, "N 2"],
    expected: Sequence[Detections],
    *,
    scratch: pathlib.Path,
) -> dict[str, dict[str, Any]]:
    """The results of each form of the exported detector, from another process.

    `expected` is what the run's detector found on each image; N is even. A form is "stablehlo" or
    an engine. Each has `largest_deviation`, and an engine also `seconds` per image. OpenVINO, which
    decides for itself how to run the ONNX model, may give other results: then it has `refused`,
    with the reason, and is used only if it is chosen by name. Temporary files are in `scratch`.

    Raises:
      UserError: another form gives other results, or cannot be loaded.
    """
    cases = scratch / "cases.safetensors"
    write_cases(cases, canvas, extent, expected)
    settings = {
        "JAX_PLATFORMS": jax.config.jax_platforms,
        # The engines share some programs.
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or str(scratch / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    child = run_child(
        [sys.executable, "-m", "ssd_jax.export.verify", folder, cases],
        {name: value for name, value in settings.items() if value},
    )
    if child.returncode:
        raise UserError(
            f"{folder.name}: the exported detector did not pass its check and was not kept. "
            f"{child.stderr.strip()[-2000:]}"
        )
    return json.loads(child.stdout.splitlines()[-1])


def write_cases(
    path: pathlib.Path,
    canvas: UInt8[np.ndarray, "N H W 3"],
    extent: Int[np.ndarray, "N 2"],
    expected: Sequence[Detections],
) -> None:
    """Writes the images and their expected detections for `main`."""
    flat = {
        f"{name}_{row}": array
        for row, found in enumerate(expected)
        for name, array in found._asdict().items()
    }
    safetensors.numpy.save_file({"canvas": canvas, "extent": extent} | flat, path)


def compare(
    expected: Detections, found: Detections, *, score_threshold: float, max_detections: int
) -> float:
    """The largest difference of a box or a score between two results on one image.

    Each detection must have its counterpart of the same class within EXACT. As both results are
    sorted, the order is then the same, except for equally close scores. Only detections as close to
    the end of the list need not be in both: to `score_threshold`, or the last of `max_detections`.

    Raises:
      UserError: a detection has no counterpart.
    """
    (labels, rows), (found_labels, found_rows) = map(_valid, (expected, found))
    apart = np.abs(rows[:, None] - found_rows).max(axis=-1)
    apart[labels[:, None] != found_labels] = np.inf
    partners: list[int] = []
    lost = []
    for index, distances in enumerate(apart):
        near = [other for other in np.argsort(distances, kind="stable") if other not in partners]
        if near and distances[near[0]] <= EXACT:
            partners.append(near[0])
        else:
            lost.append(index)
    added = np.setdiff1d(np.arange(len(found_rows)), partners)
    full = max(len(rows), len(found_rows)) == max_detections
    end = min([*rows[:, 4], *found_rows[:, 4]]) if full else score_threshold
    wrong = [each for each in (*rows[lost], *found_rows[added]) if not each[4] <= end + EXACT]
    if wrong:
        raise UserError(
            f"{len(wrong)} of the {len(rows) + len(found_rows)} detections of both have no "
            f"counterpart within {EXACT:.0e}, first the box "
            f"{wrong[0][:4].astype(float).round(5).tolist()} with score {wrong[0][4]:.5f}."
        )
    kept = np.setdiff1d(np.arange(len(rows)), lost)
    return float(apart[kept, partners].max(initial=0))


def _valid(result: Detections) -> tuple[np.ndarray, np.ndarray]:
    rows = np.concatenate([result.boxes, result.scores[:, None]], axis=1)
    return result.labels[result.valid], rows[result.valid]


def _check(folder: ModelFolder, cases: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    canvas, extent = cases["canvas"], cases["extent"]
    expected = [
        Detections(*(cases[f"{name}_{row}"] for name in Detections._fields))
        for row in range(len(canvas))
    ]

    limits = {name: folder.meta["detect"][name] for name in ("score_threshold", "max_detections")}

    def check(name: str, predict: Callable) -> dict[str, Any]:
        deviations = []
        for start in range(0, len(canvas), _BATCH):
            batch = slice(start, start + _BATCH)
            found = predict(canvas[batch], extent[batch])
            for row, reference in enumerate(expected[batch]):
                own = Detections(*(array[row] for array in found))
                try:
                    deviations.append(compare(reference, own, **limits))
                except UserError as error:
                    raise UserError(f"{name}, image {start + row}: {error}") from error
        return {"largest_deviation": max(deviations)}

    results = {"stablehlo": check("stablehlo", _stablehlo(folder))}
    for engine in installed_engines(folder):
        try:
            exported = open_exported(folder, engine)
            checked = check(engine, exported.predict)
            results[engine] = checked
            # The seconds of an accelerator would be mistaken for those of the CPU.
            if jax.default_backend() == "cpu" or engine != "jax":
                results[engine] |= {"seconds": exported.seconds_an_image()}
        except UserError as error:
            if engine != "openvino":
                raise
            results[engine] = {"refused": str(error)}
    return results


def _stablehlo(folder: ModelFolder) -> Callable:
    program = jax.export.deserialize(bytearray(folder.file(STABLEHLO)))
    weights = jax.device_put(folder.weights())
    call = jax.jit(program.call)

    def predict(canvas, extent):
        return Detections(**jax.device_get(call(weights, canvas, extent)))

    return predict


def main(folder: str, cases: str) -> int:
    """Prints the results as one line of JSON; if a check fails, a message with exit code 1."""
    try:
        # In float32 on a GPU too, whose default is TF32.
        with jax.default_matmul_precision("highest"):
            found = _check(read_folder(folder), safetensors.numpy.load_file(cases))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
