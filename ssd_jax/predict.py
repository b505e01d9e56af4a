"""Pictures -> detections: the one path of evaluation, prediction, serving and export."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from ssd_jax.ops.detect import detect
from ssd_jax.ops.images import normalise, resize
from ssd_jax.types import Detections


def make_predict(
    model: nn.Module,
    anchors: Float[np.ndarray, "A 4"],
    *,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **detect_settings: int | float | str,
) -> Callable[[Any, Array, Array], Detections]:
    """Returns `predict(variables, canvas, extent) -> Detections`, to be jitted by the caller.

    The pictures come as `types.Batch` holds them; `detect_settings` go to `ops.detect.detect`.
    """

    def predict(
        variables: Any, canvas: UInt8[Array, "B H W 3"], extent: Int[Array, "B 2"]
    ) -> Detections:
        images = jax.vmap(lambda c, e: resize(c, e, size=image_size))(canvas, extent)
        box_deltas, class_logits = model.apply(variables, normalise(images, mean, std), train=False)
        return jax.vmap(lambda d, c: detect(d, c, anchors, **detect_settings))(
            box_deltas, class_logits
        )

    return predict
