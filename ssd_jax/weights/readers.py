"""Weight files of other frameworks -> NumPy arrays by name."""

import os
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ssd_jax.errors import UserError


class WeightFile(NamedTuple):
    """The tensors of a file under the names that the file gives them, and what it says of them."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_safetensors(path: str | os.PathLike) -> WeightFile:
    """Read every tensor; bfloat16, float16 and float64 become float32."""
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such weight file. Expected a .safetensors file there.")
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: _as_float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return WeightFile(tensors, file.metadata() or {})
    except SafetensorError as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}). It may be cut short or of another "
            "format; fetch or write it again."
        ) from error


def _as_float32(tensor: np.ndarray) -> np.ndarray:
    # bfloat16 is no NumPy type of its own, so np.floating does not cover it.
    if tensor.dtype.name == "bfloat16" or np.issubdtype(tensor.dtype, np.floating):
        return tensor.astype(np.float32)
    return tensor
