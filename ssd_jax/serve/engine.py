"""What the server asks of a detector."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from ssd_jax.types import Detections


@runtime_checkable
class Engine(Protocol):
    """A detector of decoded pictures; `export.exported.Exported` is one."""

    meta: Mapping[str, Any]
    classes: tuple[str, ...]
    canvas: int
    engine: str

    def predict(
        self, canvas: UInt8[np.ndarray, "B S S 3"], extent: Int[np.ndarray, "B 2"]
    ) -> Detections:
        """Detections as NumPy arrays, padded to the same number for each picture."""
