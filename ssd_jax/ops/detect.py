"""From the network's outputs to detections: scores, decoding, NMS, the best few."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssd_jax.errors import UserError, check_choice
from ssd_jax.ops.boxes import VARIANCES, decode
from ssd_jax.ops.boxes import clip as clip_to_image
from ssd_jax.ops.nms import nms as hard_nms
from ssd_jax.ops.nms import soft_nms
from ssd_jax.types import Detections

SUPPRESSIONS = ("hard", "linear", "gaussian")
# The number of classes for which NMS runs at once. Each takes `candidates`^2 numbers of memory.
_ROWS = 128
# On a CPU the number of candidates is divided by these, if no more reach the threshold.
_FEWER = 8, 2


@jax.named_scope("detect")
def class_scores(
    class_logits: Float[Array | np.ndarray, "*N channels"], *, activation: str = "softmax"
) -> Float[Array, "*N channels"]:
    """Scores in [0, 1], float32: probabilities that sum to 1 ("softmax"), or independent ones.

    With "sigmoid" the channel of the background has no meaning.
    """
    check_choice("activation", activation, ("softmax", "sigmoid"))
    logits = class_logits.astype(jnp.float32)
    return jax.nn.softmax(logits) if activation == "softmax" else jax.nn.sigmoid(logits)


@jax.named_scope("detect")
def multibox_detection(
    box_deltas: Float[Array | np.ndarray, "A 4"],
    probabilities: Float[Array | np.ndarray, "A channels"],
    anchors: Float[Array | np.ndarray, "A 4"],
    *,
    score_threshold: float | Float[Array, ""] = 0.01,
    iou_threshold: float | Float[Array, ""] = 0.45,
    strict: bool = True,
    class_per_anchor: str = "all",
    force_suppress: bool = False,
    candidates: int = 400,
    max_detections: int = 200,
    nms: str = "hard",
    soft_nms_sigma: float | Float[Array, ""] = 0.5,
    clip: bool = True,
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Detections:
    """The detections in one image from its class probabilities, background first.

    With `class_per_anchor` "all" the classes are independent (SSD paper, section 2.2,
    "Inference"): NMS runs on the `candidates` best anchors of each class. With "best" only the best
    class of an anchor counts (MXNet's MultiBoxDetection; the first of equal ones): the `candidates`
    are the best anchors of all classes, and NMS runs within each class, or across classes with
    `force_suppress`. The `max_detections` best of all are returned. Of equal scores the lower
    class, then the lower anchor comes first; with "best" only the anchor decides.

    A `strict` threshold must be exceeded, by a score to be kept and by an IoU to suppress (Caffe,
    GluonCV); otherwise reaching it is enough (MXNet). With `clip` boxes are clipped to the image
    before they are compared. `nms` "linear" and "gaussian" lower scores instead of removing boxes
    (`ops.nms.soft_nms`); boxes then below `score_threshold` are removed. Map this over a sharded
    batch inside `jax.shard_map`: plain jit adds collectives around `top_k`.
    """
    check_choice("class_per_anchor", class_per_anchor, ("all", "best"))
    check_choice("nms", nms, SUPPRESSIONS)
    if force_suppress and class_per_anchor == "all":
        raise UserError(
            "force_suppress: it needs one class per anchor, but class_per_anchor is 'all'. Set "
            "class_per_anchor to 'best', or force_suppress to False."
        )
    if not len(box_deltas) == len(probabilities) == len(anchors):
        raise UserError(
            f"got {len(box_deltas)} box deltas, {len(probabilities)} rows of probabilities and "
            f"{len(anchors)} anchors, expected as many of each."
        )
    boxes = decode(box_deltas, anchors, variances)
    if clip:
        boxes = clip_to_image(boxes)
    # Each row is a contest for a place among the candidates: one per class, or one for all classes.
    scores, best_class = probabilities[:, 1:].T, None
    scores = jnp.where(jnp.isnan(scores), -1, scores)  # or `top_k` would rank them first
    if class_per_anchor == "best":
        scores, best_class = scores.max(axis=0)[None], scores.argmax(axis=0)
    # Within one class NMS needs no labels.
    apart = None if class_per_anchor == "all" or force_suppress else best_class
    numbers = score_threshold, iou_threshold, soft_nms_sigma
    places = min(candidates, len(anchors))
    scores, anchor, survives = _contests(
        scores, boxes, apart, numbers, places=places, nms=nms, strict=strict
    )
    if best_class is None:
        labels = jnp.broadcast_to(jnp.arange(len(scores))[:, None], scores.shape)
    else:
        labels = best_class[anchor]

    ranking = jnp.where(survives, scores, -1).reshape(-1)
    best, index = jax.lax.top_k(ranking, min(max_detections, ranking.size))
    missing = max_detections - best.size
    best = jnp.pad(best, (0, missing), constant_values=-1)
    index = jnp.pad(index, (0, missing))
    valid = best >= 0
    return Detections(
        boxes=jnp.where(valid[:, None], boxes[anchor.reshape(-1)[index]], 0),
        scores=jnp.where(valid, best, 0),
        labels=jnp.where(valid, labels.reshape(-1)[index], 0),
        valid=valid,
    )


def _contest(row, boxes, labels, numbers, *, places, nms, strict):
    """The best of a row of scores, in falling order: scores, anchors, and which are kept."""
    score_threshold, iou_threshold, sigma = numbers
    scores, anchor = jax.lax.top_k(row, places)
    boxes, labels = boxes[anchor], None if labels is None else labels[anchor]
    overlap = {"iou_threshold": iou_threshold, "strict": strict, "labels": labels}
    if nms == "hard":
        reach = _reach(scores, score_threshold, strict)
        return scores, anchor, hard_nms(boxes, reach, **overlap)
    scores = soft_nms(boxes, scores, kind=nms, sigma=sigma, **overlap)
    return scores, anchor, _reach(scores, score_threshold, strict)


def _reach(scores, threshold, strict):
    return scores > threshold if strict else scores >= threshold


def _contests(rows, *shared, places, nms, strict):
    """`_contest` for every row.

    On a CPU the rows are processed one after the other, so that the overlaps stay in the cache, and
    each with only as many places as needed: scores below the threshold are neither kept nor
    suppress others.
    """
    contest = functools.partial(_contest, nms=nms, strict=strict)
    sizes = [max(1, places // divisor) for divisor in _FEWER]

    # Under vmap a conditional would run all of its branches; a loop over the batch runs only one.
    @jax.custom_batching.sequential_vmap
    def smallest(row, boxes, labels, numbers):
        def with_places(size):
            def run():
                found = contest(row, boxes, labels, numbers, places=size)
                return tuple(jnp.pad(each, (0, places - size)) for each in found)

            return run

        count = _reach(row, numbers[0], strict).sum()
        choice = sum((count > size).astype(jnp.int32) for size in sizes)
        return jax.lax.switch(choice, [with_places(size) for size in (*sizes, places)])

    def together(rows, *shared):
        def one(row):
            return contest(row, *shared, places=places)

        few = len(rows) <= _ROWS
        return jax.vmap(one)(rows) if few else jax.lax.map(one, rows, batch_size=_ROWS)

    one_by_one = jax.vmap(smallest, (0, None, None, None))
    return jax.lax.platform_dependent(rows, *shared, cpu=one_by_one, default=together)
