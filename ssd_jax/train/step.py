"""One training step: a pure function that includes augmentation, jitted by the caller."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ssd_jax.errors import UserError
from ssd_jax.models.groups import group_size, group_sums
from ssd_jax.ops.augment import Augmentation, augment
from ssd_jax.ops.images import normalise
from ssd_jax.ops.losses import multibox_loss
from ssd_jax.ops.matching import match
from ssd_jax.ops.mosaic import GROUP, Mosaic, mosaic
from ssd_jax.sharding import BATCH_AXIS, mean_gradient
from ssd_jax.train.ema import moving_average
from ssd_jax.train.hooks import Augment, Loss, Metrics, call_augment, call_loss
from ssd_jax.train.optimizer import Multipliers, multipliers
from ssd_jax.train.state import TrainState
from ssd_jax.types import Batch

# Folded into the key of a step in place of a sample id, all of which are below 2**31.
_DROPOUT = np.uint32(2**32 - 1)


def image_size_of(step: int, image_sizes: Sequence[int], *, seed: int) -> int:
    """The image size that a step trains at: drawn uniformly, a function of (seed, step) alone."""
    (draw,) = np.random.SeedSequence((seed, step)).generate_state(1).tolist()
    return image_sizes[draw % len(image_sizes)]


@jax.named_scope("augment")
def augment_batch(
    batch: Batch,
    step: Array | int,
    *,
    seed: int,
    image_size: int,
    settings: Augmentation,
    fill: tuple,
    mosaics: Mosaic | None = None,
    mosaic_steps: int | None = None,
) -> tuple[Float[Array, "B S S 3"], Batch]:
    """Augmented images in 0..255 and the batch with their boxes.

    The randomness of each image is a function of (seed, step, sample id) alone: it does not depend
    on its neighbours, the device or the number of devices. `mosaics` are made of four consecutive
    images, which must be on one device; there are then four times as many rows of objects, also
    after `mosaic_steps`, the steps with mosaics, None for all.
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
    batch = batch._replace(boxes=boxes, valid=valid)
    if mosaics is None:
        return images, batch
    if mosaic_steps is not None:
        probability = jnp.where(step < mosaic_steps, mosaics.probability, 0.0)
        mosaics = mosaics._replace(probability=probability)
    return _mosaic_batch(images, batch, step_key, mosaics)


def _mosaic_batch(images, batch, step_key, settings):
    if len(images) % GROUP:
        raise UserError(
            f"config.augment.mosaic: got {len(images)} images on a device, expected a multiple of "
            f"{GROUP}, because {GROUP} images are combined into mosaics. Change config.batch_size "
            "or the number of devices."
        )

    def one_key(sample_id):
        # Not the key of the image's own augmentation.
        return jax.random.fold_in(jax.random.fold_in(step_key, sample_id), 1)

    keys = jax.vmap(one_key)(batch.sample_id)
    columns = {"labels": batch.labels, "difficult": batch.difficult}
    grouped = jax.tree.map(
        lambda x: x.reshape(-1, GROUP, *x.shape[1:]),
        (keys, images, batch.boxes, batch.valid, columns),
    )
    made = jax.vmap(functools.partial(mosaic, settings=settings))(*grouped)
    images, boxes, valid, columns = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)
    return images, batch._replace(boxes=boxes, valid=valid, **columns)


@jax.named_scope("loss")
def batch_loss(
    box_deltas: Float[Array, "B A 4"],
    class_logits: Float[Array, "B A _"],
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
    batch_axis: str | None = None,
    **objective: int | float | str,
) -> tuple[Array, Metrics]:
    """class loss / its count + box_weight * box loss / its count, the mean over groups of images.

    With "positives" both counts are the positive anchors (SSD paper, equation 1). An image with
    only negatives, which the paper does not mention, has as many negatives as one with a single
    positive, and counts as one positive for the class loss; otherwise the loss of a batch without
    objects would be the sum over its images. With "valid" (MXNet's SSD) the class loss is divided
    by its anchors (positives and chosen negatives), and the box loss by its deltas that are not
    exactly right; both counts are about four times as large. A count of 0 is replaced by 1. `group`
    is the number of consecutive images that are counted together, which in other frameworks are
    those of a device; 0 is the whole batch. Inside `jax.shard_map`, `batch_axis` is the axis that
    the batch is sharded over, and the loss of the batch is the mean over that axis. The remaining
    keywords are those of `match` and `multibox_loss`.
    """
    if normalization not in ("positives", "valid"):
        raise UserError(f"normalization: got {normalization!r}, expected positives or valid.")
    match_image = functools.partial(
        match,
        anchors,
        iou_threshold=iou_threshold,
        negative_iou_threshold=negative_iou_threshold,
        strict=strict,
        empty_is_negative=empty_is_negative,
    )
    targets = jax.vmap(match_image)(batch.boxes, batch.labels, batch.valid)
    sums = jax.vmap(lambda d, c, t: multibox_loss(d, c, t, anchors, **objective))(
        box_deltas, class_logits, targets
    )
    only_negatives = (sums.num_positive == 0) & (sums.num_classified > 0)
    counts = sums.num_positive + only_negatives, sums.num_positive
    if normalization == "valid":
        counts = sums.num_classified, sums.num_box_errors
    size = group_size(len(box_deltas), group, batch_axis=batch_axis)
    counts = group_sums(jnp.stack(counts, axis=1), group, batch_axis=batch_axis)
    # The groups have equally many images, so the mean over images is the mean over groups.
    class_loss, box_loss = jnp.mean(
        jnp.stack((sums.class_loss, sums.box_loss), axis=1) * (size / jnp.maximum(counts, 1)),
        axis=0,
    )
    loss = class_loss + box_weight * box_loss
    return loss, {"loss": loss, "class_loss": class_loss, "box_loss": box_loss}


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    mesh: Mesh,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    augment: Augment,
    loss: Loss,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int = 0,
    image_size: int | None = None,
    rate_multipliers: Multipliers = (),
    ema_decay: float = 0.0,
    sharding: str = "replicated",
) -> tuple[TrainState, Metrics]:
    """Augment, forward, match, loss, gradient, update; metrics are scalars on the device.

    `augment` is `augment_batch` with its keywords, or another function of (batch, step). `loss` is
    `batch_loss` with its anchors and keywords, or another function of (box_deltas, class_logits,
    batch) that is a mean over images. `call_augment`, which takes `image_size`, and `call_loss`
    check their results. Up to the gradient each device of the mesh works on its own images, inside
    `jax.shard_map` over BATCH_AXIS, which is also the `batch_axis` of a model with BatchNorm. The
    key "dropout" of a model is a function of (`seed`, step, device). Parameters that the
    optimizer's `rate_multipliers` freeze get no gradient, which saves computing and sending it.
    `ema_decay` is that of the state's EMA, if it has one. `sharding` is that of the state, see
    `state.create_state`.
    """
    rates = multipliers(state.params, rate_multipliers)
    trained = jax.tree.map(lambda p, rate: p if rate else None, state.params, rates)
    frozen = jax.tree.map(lambda p, rate: None if rate else p, state.params, rates)

    def gradient_of_rows(trained, constants, batch):
        frozen, batch_stats, step = constants
        images, batch = call_augment(augment, batch, step, image_size=image_size)
        images = normalise(images, mean, std)

        def loss_of(trained):
            with jax.named_scope("network"):
                (box_deltas, class_logits), updates = model.apply(
                    {"params": _merge(trained, frozen), "batch_stats": batch_stats},
                    images,
                    train=True,
                    mutable=["batch_stats"],
                    rngs={"dropout": _dropout_key(seed, step)},
                )
            value, metrics = call_loss(loss, box_deltas, class_logits, batch)
            # Frozen statistics are returned unchanged and need not be sent.
            moved = jax.tree.map(
                lambda new, old: None if new is old else new,
                updates.get("batch_stats", {}),
                batch_stats,
            )
            return value, (metrics, moved)

        return jax.grad(loss_of, has_aux=True)(trained)

    gradient, (metrics, moved) = mean_gradient(gradient_of_rows, mesh, sharding=sharding)(
        trained, (frozen, state.batch_stats, state.step), batch
    )
    gradient = _merge(gradient, jax.tree.map(jnp.zeros_like, state.params))
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        # A momentum from before they were frozen would move them on.
        updates = jax.tree.map(lambda u, rate: u if rate else jnp.zeros_like(u), updates, rates)
        params = optax.apply_updates(state.params, updates)
    metrics |= {
        "lr": jnp.asarray(schedule(state.step), jnp.float32),
        "gradient_norm": optax.tree.norm(gradient),
    }
    batch_stats = _merge(moved, state.batch_stats)
    average = state.average and moving_average(
        state.average,
        {"params": params, "batch_stats": batch_stats},
        state.step,
        decay=ema_decay,
    )
    return TrainState(state.step + 1, params, batch_stats, opt_state, average), metrics


def _dropout_key(seed: int, step: Array) -> Array:
    """The dropout key; another one on each device, because each has its own images."""
    of_step = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), _DROPOUT)
    return jax.random.fold_in(of_step, jax.lax.axis_index(BATCH_AXIS))


def _merge(some: Any, others: Any) -> Any:
    """`some`, with the leaves of `others` in place of None."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, some, others, is_leaf=lambda x: x is None
    )
