"""The stages of a training step around the network, each as a program of its own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssd_jax import experiment
from ssd_jax.benchmark.workload import (
    Program,
    Workload,
    first_variables,
    make_program,
    stateful,
    with_objects,
)
from ssd_jax.ops.images import normalise
from ssd_jax.ops.losses import mine_hard_negatives
from ssd_jax.ops.matching import match
from ssd_jax.ops.mosaic import GROUP
from ssd_jax.sharding import BATCH_AXIS, each_device_alone, put_batch, put_replicated
from ssd_jax.train.state import create_state
from ssd_jax.train.step import augment_batch, batch_loss
from ssd_jax.types import Batch


def part_programs(work: Workload) -> dict[str, Program]:
    """The programs of all parts, by name."""
    parts = {"augment": augment_program(work), "match": match_program(work)}
    if work.config.loss.class_loss == "softmax":
        parts["mine"] = mine_program(work)
    return parts | {"loss": loss_program(work), "optimizer": optimizer_program(work)}


def augment_program(work: Workload) -> Program:
    """From decoded images to the input of the network."""
    config = work.config
    settings = experiment.augmentation_settings(config, config.model.image_size)

    def augment_rows(step, batch):
        images, batch = augment_batch(batch, step, **settings)
        return normalise(images, config.preprocess.mean, config.preprocess.std), batch

    return _part(work, augment_rows, work.batch)


def match_program(work: Workload) -> Program:
    """The targets of all anchors."""
    matched = functools.partial(match, work.network.anchors, **work.config.match)

    def match_rows(_, batch):
        return jax.vmap(matched)(batch.boxes, batch.labels, batch.valid)

    return _part(work, match_rows, _augmented(work))


def mine_program(work: Workload) -> Program:
    """Hard-negative mining; one anchor in a hundred is positive."""
    draws = _noise(work, 1)[..., 0]
    settings = work.config.loss
    mined = functools.partial(
        mine_hard_negatives,
        negatives_per_positive=settings.negatives_per_positive,
        minimum=settings.minimum_negatives,
    )

    def mine_rows(_, background, positive):
        return jax.vmap(mined)(background, positive, ~positive)

    return _part(work, mine_rows, np.abs(np.sin(draws)), draws > 2.33)


def loss_program(work: Workload) -> Program:
    """Matching, hard-negative mining, both losses and their gradient by the network's outputs."""
    settings = experiment.loss_settings(work.config)
    channels = work.network.model.heads.num_classes + 1

    def loss_rows(_, deltas, logits, batch):
        def loss_of(deltas, logits):
            return batch_loss(
                deltas, logits, batch, work.network.anchors, batch_axis=BATCH_AXIS, **settings
            )[0]

        return jax.grad(loss_of, argnums=(0, 1))(deltas, logits)

    return _part(work, loss_rows, _noise(work, 4), _noise(work, channels), _augmented(work))


def optimizer_program(work: Workload) -> Program:
    """From gradients to new parameters, without the EMA of optimizer.ema_decay."""
    config = work.config
    schedule = experiment.stand_in_schedule(config)
    optimizer = experiment.build_optimizer(config, schedule)
    state = create_state(first_variables(work), optimizer, work.mesh, sharding=config.sharding)
    gradient = jax.tree.map(jnp.zeros_like, state.params)

    def update(held, gradient):
        params, opt_state = held
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        # With a sum, because the caller must wait for a result that is not donated.
        return (optax.apply_updates(params, updates), opt_state), optax.tree.sum(updates)

    held = state.params, state.opt_state
    traced = jax.jit(update, donate_argnums=0).trace(held, gradient)
    return make_program(traced, stateful(held, gradient), config.batch_size)


def _part(work: Workload, function: Callable, *batches: Any) -> Program:
    """`function(step, *batches)` on each device's rows."""
    step = put_replicated(np.zeros((), np.int32), work.mesh)
    arguments = step, *put_batch(batches, work.mesh)
    traced = each_device_alone(function, work.mesh).trace(*arguments)
    return make_program(traced, lambda f: functools.partial(f, *arguments), work.config.batch_size)


def _augmented(work: Workload) -> Batch:
    """The batch after augmentation; a mosaic has the objects of all its images."""
    mosaics = work.config.augment.mosaic.probability > 0
    count = work.batch.valid.shape[1]
    return with_objects(work.batch, count * GROUP) if mosaics else work.batch


def _noise(work: Workload, channels: int) -> np.ndarray:
    shape = work.config.batch_size, len(work.network.anchors), channels
    return np.random.default_rng(0).standard_normal(shape, np.float32)
