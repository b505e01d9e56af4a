"""The whole of `predict` as a StableHLO program, for JAX without this package.

exported = jax.export.deserialize(bytearray(pathlib.Path("model.stablehlo").read_bytes()))
weights = safetensors.numpy.load_file("weights.safetensors")
found = exported.call(weights, canvas, extent)  # a dictionary of the fields of Detections
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import export

PLATFORMS = ("cpu", "cuda")


def to_stablehlo(predict: Callable, weights: Mapping[str, np.ndarray], canvas: int) -> bytes:
    """The serialised program of `predict(variables, canvas, extent)`, for batches of any size.

    The first argument of the program has the `weights` by flat name, so they are not part of it.
    """

    def call(weights, canvas, extent):
        return predict(unflatten_dict(weights, sep="/"), canvas, extent)._asdict()

    (batch,) = export.symbolic_shape("batch")
    program = export.export(jax.jit(call), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()},
        jax.ShapeDtypeStruct((batch, canvas, canvas, 3), np.uint8),
        jax.ShapeDtypeStruct((batch, 2), np.int32),
    )
    return bytes(program.serialize())
