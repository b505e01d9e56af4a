"""The matching of anchors to objects (SSD paper, section 2.2, "Matching strategy")."""

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

    First the pairs with the largest IoU are matched, one after the other, until every object has an
    anchor (`greedy_pairs`). Then every other anchor is matched to the object with the largest IoU,
    if it reaches `iou_threshold`, or exceeds it if `strict`. Unmatched anchors are negative if
    their largest IoU is below `negative_iou_threshold` (default: `iou_threshold`). Objects that are
    not `valid` are never matched; without objects, all anchors are negative, or ignored unless
    `empty_is_negative`.

    MXNet's MultiBoxTarget is `strict` and ignores images without objects; Caffe is neither.
    """
    if not len(boxes):
        boxes, labels, valid = np.zeros((1, 4), np.float32), np.zeros(1, int), np.zeros(1, bool)
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

    The result is that of repeatedly taking the pair with the largest IoU among free anchors and
    free objects; of equal pairs the one with the lowest anchor, then the lowest object. A round
    takes every pair that is the best one for both its anchor and its object, because no better pair
    can separate these. There are usually two or three rounds, and at most two per object if boxes
    overlap closely.

    Anchors are searched in about sqrt(A) blocks, and the largest IoU of each block is kept for each
    object. Once an anchor is taken this is only an upper bound, which is computed again when the
    block becomes its object's best.
    """
    num_anchors, num_objects = iou.shape
    side = int(np.ceil(np.sqrt(num_anchors)))
    known = jnp.where(iou > _SMALLEST_IOU, iou, -1)  # a NaN would be the largest, but never taken
    padded = jnp.pad(known, ((0, side * side - num_anchors), (0, 0)), constant_values=-1)
    blocks = padded.reshape(side, side, num_objects)
    # Each round takes a pair or lowers a bound. This limit cannot be reached, unless XLA computes
    # `blocks` and their maxima separately with different rounding, and two objects then wait for
    # each other.
    most_rounds = num_objects**2 + 1

    def searching(state):
        rounds, own_anchor, bounds = state
        return (rounds < most_rounds) & jnp.any((own_anchor < 0) & (bounds.max(axis=0) > 0))

    def take_pairs(state):
        rounds, own_anchor, bounds = state
        block = bounds.argmax(axis=0)
        # A product, which is faster than searching for each candidate among the taken ones.
        own_block, own_row = (jax.nn.one_hot(i, side) for i in jnp.divmod(own_anchor, side))
        taken = own_row.T @ own_block
        candidates = jnp.take_along_axis(blocks, block[None, None], axis=0)[0]
        candidates = jnp.where(taken[:, block] > 0, -1, candidates)
        best, row = candidates.max(axis=0), candidates.argmax(axis=0)
        bounds = jnp.where(jnp.arange(side)[:, None] == block, best, bounds)
        free = own_anchor < 0
        first_for_object = free & (best > 0) & (bounds.argmax(axis=0) == block)
        rivals = jnp.where(free, blocks[block, row], -1)
        first_for_anchor = rivals.argmax(axis=1) == jnp.arange(num_objects)
        pairs = first_for_object & first_for_anchor
        found = (block * side + row).astype(own_anchor.dtype)  # int64 with jax_enable_x64
        return rounds + 1, jnp.where(pairs, found, own_anchor), bounds

    # Derived from the input, so that the loop's types agree inside `jax.shard_map`.
    nobody = jnp.full_like(iou[0], -1, dtype=jnp.int32)
    start = 0, nobody, blocks.max(axis=1)
    return jax.lax.while_loop(searching, take_pairs, start)[1]
