"""Box arithmetic: formats, overlap, and the offsets that the network predicts.

Boxes are `xyxy` unless a name says otherwise. Every function accepts NumPy arrays as well.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# The offsets of centre (x, y) and size (width, height) are divided by these before regression, as
# in Caffe's SSD (PriorBox `variance`).
VARIANCES = (0.1, 0.1, 0.2, 0.2)

# Smaller sizes are treated as this size, which keeps logarithms, quotients and exponentials finite.
# A pixel of a 10,000-pixel image is 100 times wider.
_SMALLEST_SIZE = 1e-6


def xyxy_to_cxcywh(boxes_xyxy: Float[Array | np.ndarray, "*N 4"]) -> Float[Array, "*N 4"]:
    """Corners to centre and size."""
    upper_left, lower_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return jnp.concatenate([(upper_left + lower_right) / 2, lower_right - upper_left], axis=-1)


def cxcywh_to_xyxy(boxes_cxcywh: Float[Array | np.ndarray, "*N 4"]) -> Float[Array, "*N 4"]:
    """Centre and size to corners."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def clip(boxes: Float[Array | np.ndarray, "*N 4"]) -> Float[Array, "*N 4"]:
    """Clip each box to the image."""
    return jnp.clip(boxes, 0, 1)


def area(boxes: Float[Array | np.ndarray, "*N 4"]) -> Float[Array, "*N"]:
    """Width times height; 0 for a box with swapped corners."""
    width, height = jnp.moveaxis(jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0), -1, 0)
    return width * height


def intersection(
    boxes_a: Float[Array | np.ndarray, "*N 4"], boxes_b: Float[Array | np.ndarray, "*M 4"]
) -> Float[Array, "..."]:
    """The area that two boxes share; the shapes broadcast."""
    upper_left = jnp.maximum(boxes_a[..., :2], boxes_b[..., :2])
    lower_right = jnp.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    return area(jnp.concatenate([upper_left, lower_right], axis=-1))


def iou(
    boxes_a: Float[Array | np.ndarray, "*N 4"], boxes_b: Float[Array | np.ndarray, "*M 4"]
) -> Float[Array, "..."]:
    """Intersection over union; 0 for two boxes without area. The shapes broadcast."""
    shared = intersection(boxes_a, boxes_b)
    union = area(boxes_a) + area(boxes_b) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0)


def iou_matrix(
    boxes_a: Float[Array | np.ndarray, "N 4"], boxes_b: Float[Array | np.ndarray, "M 4"]
) -> Float[Array, "N M"]:
    """Intersection over union of every pair; 0 for two boxes without area."""
    return iou(boxes_a[:, None], boxes_b[None])


def encode(
    boxes: Float[Array | np.ndarray, "*N 4"],
    anchors: Float[Array | np.ndarray, "*N 4"],
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Float[Array, "*N 4"]:
    """The offsets (dx, dy, dw, dh) from each anchor to its box (SSD paper, equation 2).

    The inverse of `decode`; finite even for boxes without area.
    """
    box, anchor = xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors)
    box_size = jnp.maximum(box[..., 2:], _SMALLEST_SIZE)
    anchor_size = jnp.maximum(anchor[..., 2:], _SMALLEST_SIZE)
    shift = (box[..., :2] - anchor[..., :2]) / anchor_size
    stretch = jnp.log(box_size / anchor_size)
    return jnp.concatenate([shift, stretch], axis=-1) / jnp.asarray(variances, jnp.float32)


def decode(
    deltas: Float[Array | np.ndarray, "*N 4"],
    anchors: Float[Array | np.ndarray, "*N 4"],
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Float[Array, "*N 4"]:
    """The boxes at the given offsets from their anchors; they may extend beyond the image.

    A box is at most a million times as wide as its anchor, so that no offset gives infinity.
    """
    anchor = xyxy_to_cxcywh(anchors)
    scaled = deltas * jnp.asarray(variances, jnp.float32)
    centre = anchor[..., :2] + scaled[..., :2] * anchor[..., 2:]
    size = anchor[..., 2:] * jnp.exp(jnp.minimum(scaled[..., 2:], -np.log(_SMALLEST_SIZE)))
    return cxcywh_to_xyxy(jnp.concatenate([centre, size], axis=-1))
