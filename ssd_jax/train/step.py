"""One training step: a pure function, augmentation included, jitted by the caller."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.errors import UserError
from ssd_jax.ops.augment import Augmentation, augment
from ssd_jax.ops.images import normalise
from ssd_jax.ops.losses import multibox_loss
from ssd_jax.ops.matching import match
from ssd_jax.train.optimizer import Multipliers, multipliers
from ssd_jax.train.state import TrainState
from ssd_jax.types import Batch

Metrics = dict[str, Array]


def augment_batch(
    batch: Batch,
    step: Array | int,
    *,
    seed: int,
    image_size: int,
    settings: Augmentation,
    fill: tuple,
) -> tuple[Float[Array, "B S S 3"], Batch]:
    """Augmented pictures in 0..255 and the batch with their boxes.

    Each picture's randomness is a function of (seed, step, sample id) alone: it does not depend on
    its neighbours, the device or the number of devices.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), step)

    def one(sample_id, canvas, extent, boxes, valid):
        key = jax.random.fold_in(step_key, sample_id)
        return augment(
            key, canvas, extent, boxes, valid, size=image_size, settings=settings, fill=fill
        )

    images, boxes, valid = jax.vmap(one)(
        batch.sample_id, batch.canvas, batch.extent, batch.boxes, batch.valid
    )
    return images, batch._replace(boxes=boxes, valid=valid)


def batch_loss(
    class_logits: Float[Array, "B A _"],
    box_deltas: Float[Array, "B A 4"],
    batch: Batch,
    anchors: Float[Array | np.ndarray, "A 4"],
    *,
    iou_threshold: float = 0.5,
    negative_iou_threshold: float | None = None,
    strict: bool = False,
    empty_is_negative: bool = True,
    box_weight: float = 1.0,
    normalization: str = "positives",
    group: int = 0,
    **mining: int | float,
) -> tuple[Array, Metrics]:
    """class loss / its count + box_weight * box loss / its count, the mean over groups of images.

    With "positives" both counts are the positive anchors (SSD paper, equation 1). With "valid"
    (MXNet's SSD) the class loss is divided by its anchors, positives and chosen negatives, and the
    box loss by its offsets that are not exactly right: both about four times as many. A count of
    nothing is one. `group` is the number of consecutive images that are counted together, what
    other frameworks have on a device; 0 is the whole batch. The remaining keywords are those of
    `match` and `multibox_loss`.
    """
    if normalization not in ("positives", "valid"):
        raise UserError(f"normalization: got {normalization!r}, expected positives or valid.")
    if group and len(box_deltas) % group:
        raise UserError(
            f"group: got {group}, expected a divisor of the batch of {len(box_deltas)} images. "
            "Change one of them, or give 0 for the whole batch."
        )
    match_image = functools.partial(
        match,
        anchors,
        iou_threshold=iou_threshold,
        negative_iou_threshold=negative_iou_threshold,
        strict=strict,
        empty_is_negative=empty_is_negative,
    )
    targets = jax.vmap(match_image)(batch.boxes, batch.labels, batch.valid)
    parts = jax.vmap(lambda d, c, t: multibox_loss(d, c, t, **mining))(
        box_deltas, class_logits, targets
    )
    total = jax.tree.map(lambda sums: sums.reshape(-1, group or len(sums)).sum(axis=1), parts)
    counts = total.num_positive, total.num_positive
    if normalization == "valid":
        counts = total.num_classified, total.num_box_errors
    class_loss, box_loss = (
        jnp.mean(sums / jnp.maximum(count, 1))
        for sums, count in zip((total.class_loss, total.box_loss), counts, strict=True)
    )
    loss = class_loss + box_weight * box_loss
    return loss, {"loss": loss, "class_loss": class_loss, "box_loss": box_loss}


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    anchors: Float[np.ndarray, "A 4"],
    augmentation: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    loss: dict[str, Any],
    rate_multipliers: Multipliers = (),
) -> tuple[TrainState, Metrics]:
    """Augment, forward, match, loss, gradient, update; metrics are scalars on the device.

    `augmentation` are the keywords of `augment_batch`, `loss` those of `batch_loss`. A parameter
    that `rate_multipliers`, those of the optimizer, freeze gets no gradient, which saves its
    computation.
    """
    images, batch = augment_batch(batch, state.step, **augmentation)
    images = normalise(images, mean, std)
    rates = multipliers(state.params, rate_multipliers)

    def loss_of(params):
        params = jax.tree.map(lambda p, r: p if r else jax.lax.stop_gradient(p), params, rates)
        (box_deltas, class_logits), updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        value, metrics = batch_loss(class_logits, box_deltas, batch, anchors, **loss)
        return value, (metrics, updates.get("batch_stats", {}))

    gradient, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics |= {
        "lr": jnp.asarray(schedule(state.step), jnp.float32),
        "gradient_norm": optax.tree.norm(gradient),
    }
    return (
        TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        ),
        metrics,
    )
