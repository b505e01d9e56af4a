"""From the network's outputs to detections: scores, decoding, suppression, the best few."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssd_jax.errors import UserError
from ssd_jax.ops.boxes import VARIANCES, decode
from ssd_jax.ops.boxes import clip as clip_to_image
from ssd_jax.ops.nms import nms as hard_nms
from ssd_jax.ops.nms import soft_nms
from ssd_jax.types import Detections

SUPPRESSIONS = ("hard", "linear", "gaussian")
# Classes that are suppressed at once. Each takes `candidates`^2 numbers of memory; on a CPU those
# of one stay in the cache, which takes half of the time.
_ROWS, _ROWS_ON_CPU = 128, 1


def class_scores(
    class_logits: Float[Array | np.ndarray, "*N channels"], *, activation: str = "softmax"
) -> Float[Array, "*N channels"]:
    """Scores in [0, 1], float32: probabilities that sum to 1 ("softmax"), or each class for itself.

    With "sigmoid" the channel of the background means nothing.
    """
    logits = class_logits.astype(jnp.float32)
    return jax.nn.softmax(logits) if activation == "softmax" else jax.nn.sigmoid(logits)


@jax.named_scope("detect")
def detect(
    box_deltas: Float[Array | np.ndarray, "A 4"],
    class_logits: Float[Array | np.ndarray, "A channels"],
    anchors: Float[Array | np.ndarray, "A 4"],
    *,
    activation: str = "softmax",
    **settings,
) -> Detections:
    """The detections of one image; `settings` are the keywords of `multibox_detection`."""
    scores = class_scores(class_logits, activation=activation)
    return multibox_detection(box_deltas, scores, anchors, **settings)


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
    """The detections of one image from its class probabilities, background first.

    With "all" classes of an anchor each class is for itself (SSD paper, section 2.2, "Inference"):
    it takes its `candidates` best anchors and suppresses among them. With the "best" class of an
    anchor (MXNet's MultiBoxDetection; the first of equal ones) the `candidates` are the best
    anchors whatever their class, and boxes of the same class suppress each other, with
    `force_suppress` those of any. The `max_detections` best of all remain. Of equal scores the
    lower class, then the lower anchor comes first; with "best" only the anchor counts.

    A `strict` threshold must be exceeded, by a score to be kept and by an IoU to suppress (Caffe,
    GluonCV); otherwise reaching it is enough (MXNet). With `clip` boxes are cut to the image before
    they are compared. `nms` "linear" and "gaussian" lower scores instead of removing boxes
    (`ops.nms.soft_nms`), and what then fails `score_threshold` goes. Map this over a sharded batch
    inside `jax.shard_map`: plain jit adds collectives around `top_k`.
    """
    if class_per_anchor not in ("all", "best"):
        raise UserError(f"class_per_anchor: got {class_per_anchor!r}, expected all or best.")
    if nms not in SUPPRESSIONS:
        raise UserError(f"nms: got {nms!r}, expected one of {', '.join(SUPPRESSIONS)}.")
    if force_suppress and class_per_anchor == "all":
        raise UserError(
            "force_suppress: it needs one class an anchor, and class_per_anchor is 'all'. Set "
            "class_per_anchor to 'best', or force_suppress to False."
        )
    boxes = decode(box_deltas, anchors, variances)
    if clip:
        boxes = clip_to_image(boxes)
    # A row is a contest for a place among the candidates: one a class, or one for all of them.
    scores = probabilities[:, 1:].T
    labels = jnp.broadcast_to(jnp.arange(len(scores))[:, None], scores.shape)
    if class_per_anchor == "best":
        scores, labels = scores.max(axis=0)[None], scores.argmax(axis=0)[None]
    scores, anchor = jax.lax.top_k(scores, min(candidates, len(anchors)))
    boxes, labels = boxes[anchor], jnp.take_along_axis(labels, anchor, axis=1)
    # Within one class there is nothing to keep apart.
    apart = None if class_per_anchor == "all" or force_suppress else labels
    overlap = {"iou_threshold": iou_threshold, "strict": strict}
    if nms != "hard":
        soften = functools.partial(soft_nms, kind=nms, sigma=soft_nms_sigma, **overlap)
        scores = jax.vmap(soften)(boxes, scores, labels=apart)
    survives = scores > score_threshold if strict else scores >= score_threshold
    if nms == "hard":
        survives = _hard_nms_by_row(boxes, survives, apart, **overlap)

    ranking = jnp.where(survives, scores, -1).reshape(-1)
    best, index = jax.lax.top_k(ranking, min(max_detections, ranking.size))
    missing = max_detections - best.size
    best = jnp.pad(best, (0, missing), constant_values=-1)
    index = jnp.pad(index, (0, missing))
    valid = best >= 0
    return Detections(
        boxes=jnp.where(valid[:, None], boxes.reshape(-1, 4)[index], 0),
        scores=jnp.where(valid, best, 0),
        labels=jnp.where(valid, labels.reshape(-1)[index], 0),
        valid=valid,
    )


def _hard_nms_by_row(boxes, valid, labels, **overlap):
    def one(row):
        boxes, valid, labels = row
        return hard_nms(boxes, valid, labels=labels, **overlap)

    def at_once(count):
        many = functools.partial(jax.lax.map, one, batch_size=count)
        return lambda *rows: jax.vmap(one)(rows) if len(boxes) <= count else many(rows)

    return jax.lax.platform_dependent(
        boxes, valid, labels, cpu=at_once(_ROWS_ON_CPU), default=at_once(_ROWS)
    )
