"""Losses of a predicted box based on its overlap with its target."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssd_jax.errors import check_choice
from ssd_jax.ops.boxes import area, intersection, xyxy_to_cxcywh
from ssd_jax.ops.boxes import iou as box_iou

BOX_LOSSES = ("giou", "diou", "ciou")
# Keeps quotients finite for boxes without area; a pixel of a 10,000-pixel image has an area 10,000
# times as large.
_EPSILON = 1e-12
_SMALLEST_SIZE = 1e-6


def overlap_loss(
    boxes: Float[Array, "*N 4"],
    targets: Float[Array | np.ndarray, "*N 4"],
    *,
    kind: str,
) -> Float[Array, "*N"]:
    """1 - IoU plus the penalty of a `kind`; 0 for equal boxes with an area.

    * giou: the fraction of the smallest box around both that neither covers (Rezatofighi et al.
      2019, arXiv:1902.09630, algorithm 1).
    * diou: squared distance of the centres over the squared diagonal of the box around both (Zheng
      et al. 2020, arXiv:1911.08287, equation 6).
    * ciou: diou and a term for the difference of the aspect ratios (same paper, equations 8 to 11).
    """
    check_choice("box loss", kind, BOX_LOSSES)
    iou = box_iou(boxes, targets)
    corners = (
        jnp.minimum(boxes[..., :2], targets[..., :2]),
        jnp.maximum(boxes[..., 2:], targets[..., 2:]),
    )
    around = jnp.concatenate(corners, axis=-1)
    if kind == "giou":
        hull = jnp.maximum(area(around), _EPSILON)
        union = area(boxes) + area(targets) - intersection(boxes, targets)
        return 1 - iou + (hull - union) / hull
    (centre, size), (target_centre, target_size) = map(_centre_and_size, (boxes, targets))
    diagonal = jnp.sum((around[..., 2:] - around[..., :2]) ** 2, axis=-1)
    distance = jnp.sum((centre - target_centre) ** 2, axis=-1) / jnp.maximum(diagonal, _EPSILON)
    if kind == "diou":
        return 1 - iou + distance
    angle = jnp.arctan2(target_size[..., 0], target_size[..., 1])
    aspect = 4 / np.pi**2 * (angle - jnp.arctan2(size[..., 0], size[..., 1])) ** 2
    # No gradient flows through the weight of the term, as in the authors' implementation.
    weight = jax.lax.stop_gradient(aspect / jnp.maximum(1 - iou + aspect, _EPSILON))
    return 1 - iou + distance + weight * aspect


def _centre_and_size(boxes):
    box = xyxy_to_cxcywh(boxes)
    return box[..., :2], jnp.maximum(box[..., 2:], _SMALLEST_SIZE)
