"""Weight files of other frameworks -> NumPy arrays by name."""

import mmap
import os
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ssd_jax.errors import UserError
from ssd_jax.files import file_digest
from ssd_jax.weights.archive import GZIP_MAGIC
from ssd_jax.weights.hub import HUB, fetch
from ssd_jax.weights.keras_h5 import HDF5_MAGIC, read_keras_arrays
from ssd_jax.weights.mxnet_params import LIST_MAGIC, parse_mxnet_params


class WeightFile(NamedTuple):
    """The tensors of a file, with the names and types that they have in it.

    `source` is where it came from; `metadata` has the details from the file or the hub, and its
    `sha256`.
    """

    source: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_weights(source: str | os.PathLike) -> WeightFile:
    """Read a file, or fetch and read `hf://owner/repo/file[@revision]`.

    The formats are safetensors, MXNet `.params` and Keras `.h5`, recognised by their first bytes.
    The arrays of a `.params` file stay in the file, mapped into memory, until they are copied.
    Raises UserError for every file that cannot be read completely.
    """
    source = os.fspath(source)
    path, metadata = fetch(source) if source.startswith(HUB) else (source, {})
    if not os.path.isfile(path):
        raise UserError(
            f"{path}: no such weight file. Expected a .safetensors, .params or .h5 file there, or "
            f"a name on the hub, {HUB}owner/repo/file."
        )
    with open(path, "rb") as file:
        head = file.read(8)
        if head == LIST_MAGIC.to_bytes(8, "little"):
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            tensors, own = parse_mxnet_params(memoryview(mapped), path), {}
        elif head == HDF5_MAGIC:
            tensors, own = read_keras_arrays(path), {}
        elif head.startswith(GZIP_MAGIC):
            raise UserError(
                f"{path}: an archive, expected a weight file. Import a model.tar.gz of "
                f"SageMaker with `ssd-jax weights import {path} --out DIR`."
            )
        else:
            tensors, own = _read_safetensors(path)
    return WeightFile(source, tensors, {**own, **metadata, "sha256": file_digest(path)})


def _read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: it has numbers of a type that NumPy does not have ({error}), such as FP8. "
            "Convert it to float32, float16 or bfloat16."
        ) from error
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable weight file: not MXNet .params, not HDF5, and as "
            f"safetensors: {error}. It may be truncated or of another format; fetch or write it "
            "again."
        ) from error
