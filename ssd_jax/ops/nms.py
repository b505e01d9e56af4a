"""Non-maximum suppression: greedy, exact and of fixed size; and Soft-NMS."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ssd_jax.errors import check_choice
from ssd_jax.ops.boxes import iou_matrix

SOFT_KINDS = ("gaussian", "linear")


@jax.named_scope("nms")
def nms(
    boxes: Float[Array | np.ndarray, "N 4"],
    valid: Bool[Array | np.ndarray, "N"],
    *,
    iou_threshold: float | Float[Array, ""],
    strict: bool = True,
    labels: Int[Array | np.ndarray, "N"] | None = None,
) -> Bool[Array, "N"]:
    """Which of the `valid` boxes survive NMS; the rows must be sorted by score.

    A box is removed if a surviving one before it (with the same label, if `labels` are given)
    overlaps it with IoU > `iou_threshold`, or >= if not `strict`: Caffe and GluonCV are strict,
    MXNet's MultiBoxDetection is not. This rule defines the result uniquely: row i depends only on
    the rows before it, so each application of the rule to all rows makes at least one more row
    right, and a result that no longer changes is the greedy one. This takes as many rounds as the
    longest chain of suppressions, usually a few. It has no gradient.
    """
    before = np.tri(len(boxes), k=-1, dtype=bool)
    iou = iou_matrix(boxes, boxes)
    suppresses = before & (iou > iou_threshold if strict else iou >= iou_threshold)
    if labels is not None:
        suppresses &= labels[:, None] == labels
    # Numbers instead of booleans: on a CPU the sum, a matrix-vector product, takes less than half
    # the time of a reduction with "any".
    overlaps = suppresses.astype(jnp.float32)

    def apply_rule(keep):
        return valid & (overlaps @ keep.astype(jnp.float32) == 0)

    def again(state):
        keep, _ = state
        next_keep = apply_rule(keep)
        return next_keep, (next_keep != keep).any()

    # The loop starts from computed values, so that its types agree inside `jax.shard_map`.
    start = apply_rule(valid)
    keep, _ = jax.lax.while_loop(lambda state: state[1], again, (start, (start != valid).any()))
    return keep


def soft_nms(
    boxes: Float[Array | np.ndarray, "N 4"],
    scores: Float[Array | np.ndarray, "N"],
    *,
    kind: str,
    iou_threshold: float | Float[Array, ""] = 0.3,
    sigma: float | Float[Array, ""] = 0.5,
    strict: bool = True,
    labels: Int[Array | np.ndarray, "N"] | None = None,
) -> Float[Array, "N"]:
    """Soft-NMS: scores lowered for overlap with better boxes, in input order (arXiv:1704.04503).

    The box with the highest score (of equal ones the first) is taken; the scores of all boxes not
    yet taken (with its label, if `labels` are given) are multiplied by a factor; then the next box
    is taken. The factor is exp(-IoU^2 / `sigma`) for the `kind` "gaussian", and for "linear" it is
    1 - IoU if the overlap would remove the box in `nms`.

    Raises:
      UserError: another `kind`.
    """
    check_choice("kind", kind, SOFT_KINDS)
    iou = iou_matrix(boxes, boxes)
    if kind == "gaussian":
        factors = jnp.exp(-(iou**2) / sigma)
    else:
        factors = jnp.where(iou > iou_threshold if strict else iou >= iou_threshold, 1 - iou, 1.0)
    if labels is not None:
        factors = jnp.where(labels[:, None] == labels, factors, 1.0)

    def take_best(_, state):
        scores, waiting = state
        best = jnp.where(waiting, scores, -1.0).argmax()
        waiting &= jnp.arange(len(scores)) != best
        return jnp.where(waiting, scores * factors[best], scores).astype(scores.dtype), waiting

    # The loop starts from computed values, so that its types agree inside `jax.shard_map`.
    everybody = factors[0] >= 0
    scores, _ = jax.lax.fori_loop(0, len(boxes), take_best, (scores * everybody, everybody))
    return scores
