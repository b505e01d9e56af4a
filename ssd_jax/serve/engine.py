"""What is asked of a detector: to predict, and by the server to tell what it is."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from ssd_jax.types import Detections


@runtime_checkable
class AnyDetector(Protocol):
    """A run's `Detector` or an exported one; `canvas` is the side in pixels."""

    classes: tuple[str, ...]
    canvas: int

    def predict(
        self, canvas: UInt8[np.ndarray, "B S S 3"], extent: Int[np.ndarray, "B 2"]
    ) -> Detections:
        """Detections of decoded pictures, padded to the same number for each."""


@runtime_checkable
class Engine(AnyDetector, Protocol):
    """A detector that tells what it is; `export.exported.Exported` is one.

    Its detections are NumPy arrays. `engine` is what runs the network, `why` a line that says why.
    """

    meta: Mapping[str, Any]
    engine: str
    why: str
