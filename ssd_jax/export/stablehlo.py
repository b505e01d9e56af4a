"""The whole of `predict` as a StableHLO program, for JAX without this package.

exported = jax.export.deserialize(bytearray(pathlib.Path("model.stablehlo").read_bytes()))
weights = safetensors.numpy.load_file("weights.safetensors")
found = exported.call(weights, canvas, extent)  # a dictionary of the fields of Detections
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

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
    with _no_source_paths():
        program = export.export(jax.jit(call), platforms=PLATFORMS)(
            {name: jax.ShapeDtypeStruct(each.shape, each.dtype) for name, each in weights.items()},
            jax.ShapeDtypeStruct((batch, canvas, canvas, 3), np.uint8),
            jax.ShapeDtypeStruct((batch, 2), np.int32),
        )
    return bytes(program.serialize())


@contextlib.contextmanager
def _no_source_paths() -> Iterator[None]:
    """Keeps paths of this machine out of a program, because an exported detector is passed on."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)
