"""The interface that the server needs of a detector: to predict and to describe itself."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ssd_jax.predict import AnyDetector


@runtime_checkable
class ServedDetector(AnyDetector, Protocol):
    """A run's `Detector`, an exported one, or anything with the same methods.

    Its detections are NumPy arrays. `engine` names the runtime of the network, `why` is the reason
    for that engine; `meta` is anything else that `GET /metadata` shows.
    """

    meta: Mapping[str, Any]
    engine: str
    why: str
