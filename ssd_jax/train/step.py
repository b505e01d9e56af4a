"""One training step: a pure function, augmentation included, jitted by the caller."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.ops.augment import Augmentation, augment
from ssd_jax.ops.images import normalise
from ssd_jax.ops.losses import multibox_loss
from ssd_jax.ops.matching import match
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
    box_weight: float = 1.0,
    **mining: int | float,
) -> tuple[Array, Metrics]:
    """(class loss + box_weight * box loss) / number of positives of the batch: paper, equation 1.

    A batch without any object divides by one.
    """
    targets = jax.vmap(lambda b, c, v: match(anchors, b, c, v, iou_threshold=iou_threshold))(
        batch.boxes, batch.labels, batch.valid
    )
    parts = jax.vmap(lambda d, c, t: multibox_loss(d, c, t, **mining))(
        box_deltas, class_logits, targets
    )
    total = jax.tree.map(jnp.sum, parts)
    positives = jnp.maximum(total.num_positive, 1)
    class_loss = total.class_loss / positives
    box_loss = total.box_loss / positives
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
) -> tuple[TrainState, Metrics]:
    """Augment, forward, match, loss, gradient, update; metrics are scalars on the device.

    `augmentation` are the keywords of `augment_batch`, `loss` those of `batch_loss`.
    """
    images, batch = augment_batch(batch, state.step, **augmentation)
    images = normalise(images, mean, std)

    def loss_of(params):
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
