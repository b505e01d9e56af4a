"""The training state, which changes from step to step, as one tree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from ssd_jax.sharding import put, shardings_of, state_shardings


class TrainState(struct.PyTreeNode):
    """Everything that a resumed run needs.

    The data position and all randomness follow from `step` [], int32, so neither is stored.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    average: Any = None  # of params and batch_stats, see `train.ema`

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to evaluate and predict with: the EMA if there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def training(self) -> dict[str, Any]:
        """What is needed to resume training, in addition to `variables`."""
        own = {"params": self.params, "batch_stats": self.batch_stats} if self.average else {}
        return {"step": self.step, "opt_state": self.opt_state, **own}

    def restored(self, variables: dict[str, Any], training: dict[str, Any]) -> "TrainState":
        """The state that `variables` and `training` were taken from."""
        return self.replace(**({"average": variables} if self.average else variables), **training)

    def beginning_with(self, variables: dict[str, Any]) -> "TrainState":
        """The same state with other weights, from which the EMA starts again."""
        # A copy, because the state is donated, and an array cannot be donated twice.
        average = jax.tree.map(jnp.copy, variables) if self.average else None
        return self.replace(**variables, average=average)


def state_shapes(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    sharding: str = "replicated",
    averaged: bool = False,
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with their shardings; `variables` may be shapes too."""

    def create(variables):
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
            average=_averaged(variables) if averaged else None,
        )

    shapes = jax.eval_shape(create, variables)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        state_shardings(shapes, mesh, sharding),
    )


def create_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    sharding: str = "replicated",
    averaged: bool = False,
) -> TrainState:
    """The state before the first step, on the mesh, from host variables.

    `sharding` is "replicated" or "fsdp", see `ssd_jax.sharding.state_specs`; `averaged` keeps an
    EMA.
    """
    shapes = state_shapes(variables, optimizer, mesh, sharding=sharding, averaged=averaged)
    places = shardings_of(shapes)
    params = put(variables["params"], places.params)
    return TrainState(
        step=put(np.zeros((), np.int32), places.step),
        params=params,
        batch_stats=put(variables.get("batch_stats", {}), places.batch_stats),
        opt_state=jax.jit(optimizer.init, out_shardings=places.opt_state)(params),
        average=put(_averaged(variables), places.average) if averaged else None,
    )


def _averaged(variables: dict[str, Any]) -> dict[str, Any]:
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
