"""Which anchor is asked to find which object (SSD paper, section 2.2, "Matching strategy")."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ssd_jax.ops.boxes import VARIANCES, encode, iou_matrix
from ssd_jax.types import Targets

# An object that overlaps no anchor by more than this stays unmatched, as in MXNet's MultiBoxTarget.
_SMALLEST_IOU = 1e-6


@jax.named_scope("match")
def match(
    anchors: Float[Array | np.ndarray, "A 4"],
    boxes: Float[Array | np.ndarray, "G 4"],
    labels: Int[Array | np.ndarray, "G"],
    valid: Bool[Array | np.ndarray, "G"],
    *,
    iou_threshold: float = 0.5,
    negative_iou_threshold: float | None = None,
    strict: bool = False,
    empty_is_negative: bool = True,
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Targets:
    """The targets of one image: each object gets its best anchor, then each anchor its best object.

    First the pairs of largest IoU, one after the other, until every object has an anchor of its
    own (`greedy_pairs`); then every other anchor takes the object that it overlaps most, when
    their IoU reaches `iou_threshold`, or exceeds it when `strict`. Negative is what neither step
    took and lies below `negative_iou_threshold`, which without a value of its own is the same.
    Objects that are not `valid` are never matched; without any, all anchors are negative, or
    ignored unless `empty_is_negative`.

    MXNet's MultiBoxTarget is `strict` and ignores images without objects; Caffe is neither.
    """
    if negative_iou_threshold is None:
        negative_iou_threshold = iou_threshold
    iou = jnp.where(valid, iou_matrix(anchors, boxes), -1)
    own_anchor = greedy_pairs(iou)
    owns = own_anchor == jnp.arange(len(anchors))[:, None]
    owned = owns.any(axis=1)
    overlap = iou.max(axis=1)
    index = jnp.where(owned, owns.argmax(axis=1), iou.argmax(axis=1))
    positive = owned | (overlap > iou_threshold if strict else overlap >= iou_threshold)
    negative = ~positive & (overlap < negative_iou_threshold)
    return Targets(
        box_deltas=jnp.where(
            positive[:, None], encode(jnp.asarray(boxes)[index], anchors, variances), 0
        ),
        class_ids=jnp.where(positive, jnp.asarray(labels)[index] + 1, 0),
        positive=positive,
        negative=negative if empty_is_negative else negative & jnp.any(valid),
    )


def greedy_pairs(iou: Float[Array, "A G"]) -> Int[Array, "G"]:
    """The anchor of each object by greedy bipartite matching; -1 for an object that gets none.

    Repeatedly the largest IoU among free anchors and free objects; of equal ones the lowest
    anchor, then the lowest object. Rows are searched in about sqrt(A) blocks whose maxima are
    kept, so that a round costs sqrt(A) G instead of A G. The number of rounds is fixed: a loop
    that stops early would need a collective a round when the batch is sharded.
    """
    num_anchors, num_objects = iou.shape
    side = int(np.ceil(np.sqrt(num_anchors)))
    padded = jnp.pad(iou, ((0, side * side - num_anchors), (0, 0)), constant_values=-1)
    blocks = padded.reshape(side, side, num_objects)

    def pair(_, state):
        own_anchor, block_maxima = state
        free = own_anchor < 0
        block = jnp.where(free, block_maxima, -1).max(axis=1).argmax()
        rows = block * side + jnp.arange(side)
        taken = (rows[:, None] == own_anchor).any(axis=1)
        candidates = jnp.where(free & ~taken[:, None], blocks[block], -1)
        row, column = jnp.divmod(candidates.argmax(), num_objects)
        found = candidates.max() > _SMALLEST_IOU
        chosen = found & (jnp.arange(num_objects) == column)
        left = jnp.where((jnp.arange(side) == row)[:, None], -1, candidates).max(axis=0)
        return (
            jnp.where(chosen, rows[row], own_anchor),
            jnp.where((jnp.arange(side) == block)[:, None], left, block_maxima),
        )

    # Derived from the input, so that the loop's types agree inside `jax.shard_map`.
    nobody = jnp.full_like(iou[0], -1, dtype=jnp.int32)
    own_anchor, _ = jax.lax.fori_loop(0, num_objects, pair, (nobody, blocks.max(axis=1)))
    return own_anchor
