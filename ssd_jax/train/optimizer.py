"""Learning-rate schedules and optimizers, from optax's parts."""

from collections.abc import Sequence
from typing import Any

import jax
import optax


def step_schedule(
    learning_rate: float,
    *,
    decay_steps: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Piecewise constant: times `decay_factor` from each of `decay_steps` on; linear warm-up."""
    constant = optax.piecewise_constant_schedule(
        learning_rate, {step: decay_factor for step in decay_steps}
    )
    if not warmup_steps:
        return constant
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
    return lambda step: constant(step) * warmup(step + 1)


def one_cycle_schedule(learning_rate: float, *, total_steps: int) -> optax.Schedule:
    """Cosine rise to `learning_rate` over the first 30 %, cosine fall to nothing (Smith, 2018)."""
    return optax.cosine_onecycle_schedule(total_steps, learning_rate)


def decay_mask(params: Any, decay: str) -> Any:
    """True for the parameters that weight decay pulls at: all, or convolution kernels only."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decay == "all" or path[-1].key == "kernel", params
    )


def build_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    decay: str = "kernels",
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """`sgd` adds the decay to the gradient, ahead of the momentum; `adamw` to the update."""
    mask = lambda params: decay_mask(params, decay)  # noqa: E731
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    if name == "sgd":
        return optax.chain(
            clip,
            optax.add_decayed_weights(weight_decay, mask),
            optax.sgd(schedule, momentum=momentum),
        )
    if name == "adamw":
        return optax.chain(clip, optax.adamw(schedule, weight_decay=weight_decay, mask=mask))
    raise ValueError(f"optimizer: got {name!r}, expected sgd or adamw")
