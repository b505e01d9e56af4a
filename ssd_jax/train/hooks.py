"""Functions that replace a config's loss and augmentation, and checks of their results.

The checks run when a step is traced and cost nothing in the compiled program.
"""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssd_jax.errors import UserError
from ssd_jax.types import Batch

Metrics = dict[str, Array]
# (batch, step) -> images in 0..255 [B, S, S, 3] and the batch with their boxes.
Augment = Callable[[Batch, Array], tuple[Array, Batch]]
# (box_deltas [B, A, 4], class_logits [B, A, channels], batch) -> loss [] and metrics to report.
Loss = Callable[[Array, Array, Batch], tuple[Array, Metrics]]

# Names that a line of metrics.jsonl has already.
_RESERVED = ("step", "split", "time", "epoch", "lr", "gradient_norm", "images_per_second",
             "data_wait", "host_memory_gib", "device_memory_gib")  # fmt: skip


class Hooks(NamedTuple):
    """Functions that replace those of the config; None keeps the config's own."""

    loss: Loss | None = None
    augment: Augment | None = None

    @property
    def names(self) -> dict[str, str | None]:
        """The qualified names, e.g. "my_loss.with_centres", which a run records."""
        return {name: hook and qualified_name(hook) for name, hook in self._asdict().items()}


def qualified_name(function: Callable) -> str:
    """Module and name of a function, of the function of a `functools.partial`, or of a class.

    A script has the name with which it would be imported.
    """
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{_module(named)}.{named.__qualname__}"


def _module(named: Callable) -> str:
    name = named.__module__
    main = sys.modules.get(name)
    if name != "__main__" or not hasattr(main, "__file__"):  # a notebook has none
        return name
    return main.__spec__.name if main.__spec__ else pathlib.Path(main.__file__).stem


def call_augment(
    augment: Augment, batch: Batch, step: Array | int, *, image_size: int | None = None
) -> tuple[Float[Array, "B S S 3"], Batch]:
    """`augment(batch, step)`, checked; its images must be `image_size` px a side, None: any size.

    Raises:
      UserError: it does not return float images [B, S, S, 3] and a `Batch` with as many rows, whose
        boxes, labels and flags have the shapes and dtypes of `types.Batch`.
    """
    given = augment(batch, step)
    rows = len(batch.sample_id)
    if not (_is_pair(given) and isinstance(given[1], Batch)):
        raise _unexpected("augment", given, "a pair (images, batch), the latter a types.Batch")
    images, changed = given
    side = image_size or (images.shape[1] if np.ndim(images) == 4 else "S")
    if not _is_float(images) or images.shape != (rows, side, side, 3):
        raise _unexpected(
            "augment", images, f"images float32[{rows}, {side}, {side}, 3] with values of 0 to 255"
        )
    objects = changed.boxes.shape[1] if np.ndim(changed.boxes) == 3 else "G"
    for name in ("boxes", "labels", "difficult", "valid"):
        shape = (rows, objects, 4) if name == "boxes" else (rows, objects)
        array, kind = getattr(changed, name), getattr(batch, name).dtype
        if np.shape(array) != shape or array.dtype.kind != kind.kind:
            expected = f"batch.{name} {kind}[{', '.join(map(str, shape))}]"
            raise _unexpected("augment", array, expected)
    return images, changed


def call_loss(
    loss: Loss,
    box_deltas: Float[Array, "B A 4"],
    class_logits: Float[Array, "B A _"],
    batch: Batch,
) -> tuple[Float[Array, ""], Metrics]:
    """`loss(box_deltas, class_logits, batch)`, checked; the metrics are float32, with a "loss".

    Raises:
      UserError: it does not return a float scalar and a dict of scalars.
    """
    given = loss(box_deltas, class_logits, batch)
    if not (_is_pair(given) and isinstance(given[1], dict)):
        raise _unexpected("loss", given, "a pair (loss, metrics), the latter a dict of scalars")
    value, metrics = given
    if not (_is_float(value) and value.shape == ()):
        raise _unexpected("loss", value, "a scalar float32[], the mean over the images")
    for name, metric in metrics.items():
        if not _is_number(metric) or name in _RESERVED:
            expected = f"a scalar or number, with a name that is not one of {', '.join(_RESERVED)}"
            raise _unexpected(f"loss, metrics[{name!r}]", metric, expected)
    reported = {"loss": value} | metrics
    return value, {name: jnp.asarray(metric, jnp.float32) for name, metric in reported.items()}


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2


def _is_float(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.floating)


def _is_number(value: Any) -> bool:
    is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
    return isinstance(value, int | float) or (
        is_array and value.shape == () and value.dtype.kind in "biufV"
    )


def _unexpected(who: str, got: Any, expected: str) -> UserError:
    return UserError(
        f"{who}: it returned {_in_words(got)}, expected {expected}. Correct your function, see "
        "docs/extending.md."
    )


def _in_words(value: Any) -> str:
    """Type and shape, e.g. "float32[8, 300, 300, 3]"."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if type(value) is tuple:
        return f"({', '.join(map(_in_words, value))})"
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
