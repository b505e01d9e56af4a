"""What the server asks of a detector: to predict, and to tell what it is."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ssd_jax.predict import AnyDetector


@runtime_checkable
class Engine(AnyDetector, Protocol):
    """A detector that tells what it is; `export.exported.Exported` is one.

    Its detections are NumPy arrays. `engine` is what runs the network, `why` a line that says why.
    """

    meta: Mapping[str, Any]
    engine: str
    why: str
