"""From the network's outputs to detections: scores, decoding, suppression, the best few."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ssd_jax.ops.boxes import VARIANCES, clip, decode
from ssd_jax.ops.nms import nms
from ssd_jax.types import Detections


def detect(
    box_deltas: Float[Array | np.ndarray, "A 4"],
    class_logits: Float[Array | np.ndarray, "A channels"],
    anchors: Float[Array | np.ndarray, "A 4"],
    *,
    score_threshold: float | Float[Array, ""] = 0.01,
    iou_threshold: float | Float[Array, ""] = 0.45,
    candidates_per_class: int = 400,
    max_detections: int = 200,
    variances: tuple[float, float, float, float] = VARIANCES,
) -> Detections:
    """The detections of one image, each class for itself (SSD paper, section 2.2, "Inference").

    A class takes its `candidates_per_class` best anchors above `score_threshold` and suppresses
    among them, on boxes clipped to the image; the `max_detections` best of all classes remain.
    Of equal scores the lower class, then the lower anchor comes first. Map it over a sharded
    batch inside `jax.shard_map`: plain jit adds collectives around `top_k`.
    """
    boxes = clip(decode(box_deltas, anchors, variances))
    scores = jax.nn.softmax(class_logits.astype(jnp.float32))[:, 1:].T
    scores, anchor = jax.lax.top_k(scores, min(candidates_per_class, len(anchors)))
    boxes = boxes[anchor]
    survives = jax.vmap(functools.partial(nms, iou_threshold=iou_threshold))(
        boxes, scores > score_threshold
    )

    ranking = jnp.where(survives, scores, -1).reshape(-1)
    best, index = jax.lax.top_k(ranking, min(max_detections, ranking.size))
    missing = max_detections - best.size
    best = jnp.pad(best, (0, missing), constant_values=-1)
    index = jnp.pad(index, (0, missing))
    valid = best >= 0
    return Detections(
        boxes=jnp.where(valid[:, None], boxes.reshape(-1, 4)[index], 0),
        scores=jnp.where(valid, best, 0),
        labels=jnp.where(valid, index // anchor.shape[1], 0),
        valid=valid,
    )
