"""Vectors that MXNet itself computed, and the parameters that its networks had then.

`SSD_JAX_GOLDEN` names their folder; without it, it is `$SSD_JAX_SHARED/golden`. Names, sizes and
seeds are read from the folder, so that another one with the same kinds of vectors will do.
"""

import os
import pathlib
import zlib

import numpy as np
import pytest


def golden_folder() -> pathlib.Path | None:
    """The folder of the vectors, None where neither variable is set; it must exist if one is."""
    if named := os.environ.get("SSD_JAX_GOLDEN"):
        return pathlib.Path(named).resolve(strict=True)
    if shared := os.environ.get("SSD_JAX_SHARED"):
        return (pathlib.Path(shared) / "golden").resolve(strict=True)
    return None


def vectors(kind: str, *, suffix: str = ".npz") -> list:
    """The files KIND and KIND_* of the folder, for `pytest.mark.parametrize`.

    Without a folder, or without such files in a folder of the user's, it is one skipped case.
    """
    folder = golden_folder()
    if folder is None:
        return [_skipped(kind, "neither SSD_JAX_GOLDEN nor SSD_JAX_SHARED is set")]
    paths = sorted({*folder.glob(f"{kind}{suffix}"), *folder.glob(f"{kind}_*{suffix}")})
    if paths:
        return [pytest.param(path, id=path.stem) for path in paths]
    if "SSD_JAX_GOLDEN" in os.environ:
        return [_skipped(kind, f"{folder} has no {kind}*{suffix}")]
    raise FileNotFoundError(f"{folder} has no {kind}*{suffix}")


def read_vector(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a vector; the file is closed, because an open one is a warning."""
    with np.load(path) as file:
        return dict(file)


def _skipped(kind: str, reason: str):
    return pytest.param(None, id=kind, marks=pytest.mark.skip(reason=reason))


def seeded_parameter(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The value that the reference network had for a parameter of this name.

    `shape` is MXNet's (kernels OIHW). The streams of `np.random.RandomState` never change.
    """
    rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    is_input = name.startswith("bn_data")
    match name.rsplit("_", 1)[-1]:
        case "weight":
            value = rng.standard_normal(shape) * _kernel_scale(name, int(np.prod(shape[1:])))
        case "bias" | "beta":
            value = rng.standard_normal(shape) * 0.1
        case "gamma":
            value = rng.uniform(0.5, 1.5, shape)
        case "mean":
            value = rng.standard_normal(shape) * (5.0 if is_input else 0.1)
        case "var":
            value = rng.uniform(0.5, 1.5, shape) * (5000.0 if is_input else 1.0)
        case "scale":
            value = 20.0 + rng.standard_normal(shape)
        case _:
            raise ValueError(f"{name}: the generator knows no such kind of parameter")
    return value.astype(np.float32)


def _kernel_scale(name: str, fan_in: int) -> float:
    """Keeps activations of the order of one, also in sums of residual blocks."""
    if name.endswith("_pred_conv_weight"):
        return np.sqrt(1 / fan_in)
    scale = np.sqrt(2 / fan_in)
    if name == "conv1_1_weight":
        return scale / 64
    if not name.startswith("stage"):
        return scale
    factors = {"_conv3_weight": 0.3, "_sc_weight": 0.6}
    return scale * next((f for end, f in factors.items() if name.endswith(end)), 0.85)


def seeded_images(seed: int, *, count: int, size: int) -> np.ndarray:
    """Blocks of 16 px under noise, minus the mean (123, 117, 104); NHWC, RGB."""
    rng = np.random.RandomState(seed)
    blocks = rng.randint(0, 256, (count, 3, *[size // 16 + 1] * 2)).astype(np.float64)
    coarse = blocks.repeat(16, axis=2).repeat(16, axis=3)[:, :, :size, :size]
    pixels = np.round(coarse * 0.75 + rng.randint(0, 64, (count, 3, size, size)))
    return (pixels.transpose(0, 2, 3, 1) - [123.0, 117.0, 104.0]).astype(np.float32)
