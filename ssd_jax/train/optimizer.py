"""Learning-rate schedules and optimizers, built from optax's parts."""

import collections
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr

from ssd_jax.errors import UserError, check_choice, nearest

# (pattern on a parameter's path, factor) pairs; the last pattern that matches counts.
Multipliers = Sequence[tuple[str, int | float]]

KERNELS_ONLY = (("*", 0.0), ("*/kernel", 1.0))
OPTIMIZERS = ("sgd", "adamw", "adam", "rmsprop", "adadelta")


def step_schedule(
    learning_rate: float,
    *,
    decay_steps: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """Piecewise constant: times `decay_factor` from each of `decay_steps` on; linear warm-up."""
    falls = collections.Counter(decay_steps)  # in a short run several may be the same step
    constant = optax.piecewise_constant_schedule(
        learning_rate, {step: decay_factor**times for step, times in falls.items()}
    )
    if not warmup_steps:
        return constant
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
    return lambda step: constant(step) * warmup(step + 1)


def cosine_schedule(
    learning_rate: float, *, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Linear warm-up as in `step_schedule`, then half a cosine to zero (arXiv:1608.03983).

    Raises UserError when the warm-up is longer than the run.
    """
    if warmup_steps > total_steps:
        raise UserError(
            f"config.optimizer.warmup_steps: got {warmup_steps}, expected at most the "
            f"{total_steps} steps of the run. Lower it, or train longer."
        )
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, total_steps + 1)
    return lambda step: schedule(step + 1)


def one_cycle_schedule(learning_rate: float, *, total_steps: int) -> optax.Schedule:
    """Cosine rise to `learning_rate` over the first 30 %, cosine fall to zero (Smith, 2018)."""
    return optax.cosine_onecycle_schedule(total_steps, learning_rate)


def multipliers(params: Any, rules: Multipliers, *, setting: str = "multipliers") -> Any:
    """The factor of each parameter: that of the last rule whose pattern matches its path, else 1.

    Paths look like "params/heads/box_0/bias"; patterns are those of `fnmatch`, in which * also
    matches slashes. Raises UserError for a pattern that no path matches; `setting` has the rules.
    """
    leaves, structure = jax.tree.flatten_with_path(params)
    paths = [f"params/{keystr(path, simple=True, separator='/')}" for path, _ in leaves]
    for pattern, _ in rules:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UserError(
                f"{setting}: no parameter matches {pattern!r}, expected a pattern on paths such "
                f"as {nearest(pattern, paths)}. Correct or remove it."
            )
    factors = [
        next((factor for pattern, factor in reversed(rules) if fnmatchcase(path, pattern)), 1.0)
        for path in paths
    ]
    return jax.tree.unflatten(structure, factors)


def build_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    learning_rate_in_momentum: bool = False,
    weight_decay: float = 5e-4,
    rate_multipliers: Multipliers = (),
    decay_multipliers: Multipliers = KERNELS_ONLY,
    clip_norm: float | None = None,
    gradient_scale: float = 1.0,
) -> optax.GradientTransformation:
    """An optimizer of `OPTIMIZERS`; the gradient is scaled and clipped before all else.

    `sgd`, `adam` and `rmsprop` add the decay to the gradient, `adamw` and `adadelta` to the update.
    With `learning_rate_in_momentum` (sgd, as in MXNet and Caffe) the update is v = momentum v -
    lr (gradient + decay); otherwise v = momentum v + gradient + decay and the update is -lr v (as
    in PyTorch). They differ in the steps after a change of the learning rate.

    `adam`, `rmsprop` and `adadelta` are those of MXNet 1.x with its constants (python/mxnet/
    optimizer, src/operator/optimizer_op-inl.h). MXNet's adadelta has no learning rate: use 1.
    """
    check_choice("optimizer", name, OPTIMIZERS)
    scale = () if gradient_scale == 1 else (optax.scale(gradient_scale),)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    decay = _by_path(
        lambda u, p, factor: u + weight_decay * factor * p if factor else u, decay_multipliers
    )
    rate = optax.scale_by_learning_rate(schedule)
    own_rate = _by_path(lambda u, p, factor: u * factor, rate_multipliers)
    if name == "sgd" and learning_rate_in_momentum:
        parts = decay, rate, own_rate, optax.trace(momentum)
    else:
        direction = {
            "sgd": (decay, optax.trace(momentum)),
            "adamw": (optax.scale_by_adam(), decay),
            "adam": (decay, _scale_by_mxnet_adam()),
            "rmsprop": (decay, optax.scale_by_rms(decay=0.9, eps=1e-8)),
            "adadelta": (optax.scale_by_adadelta(rho=0.9, eps=1e-5), decay),
        }
        parts = *direction[name], rate, own_rate
    return optax.chain(*scale, clip, *parts)


def _scale_by_mxnet_adam(
    beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with epsilon added to the root of the biased second moment (section 2 of the paper).

    Optax adds it to the bias-corrected one, so that in the first steps gradients near epsilon give
    updates up to 30 times as large.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros, nu=zeros)

    def update(updates, state, params):
        del params
        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, beta1, 1)
        nu = optax.tree.update_moment(updates, state.nu, beta2, 2)
        factor = jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
        updates = jax.tree.map(lambda m, v: factor * m / (jnp.sqrt(v) + epsilon), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _by_path(change: Callable, rules: Multipliers) -> optax.GradientTransformation:
    """`change(update, parameter, factor)` for each parameter; `init` raises for wrong rules."""

    def init(params):
        multipliers(params, rules)
        return optax.EmptyState()

    def update(updates, state, params):
        return jax.tree.map(change, updates, params, multipliers(params, rules)), state

    return optax.GradientTransformation(init, update)
