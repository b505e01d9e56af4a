"""What changes from step to step, as one tree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ssd_jax.sharding import put_replicated, replicated


class TrainState(struct.PyTreeNode):
    """Everything that a resumed run needs.

    The data position and all randomness follow from `step` [], int32, so neither is stored.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before the first step, on the mesh, from host variables."""
    params = put_replicated(variables["params"], mesh)
    return TrainState(
        step=put_replicated(jnp.zeros((), jnp.int32), mesh),
        params=params,
        batch_stats=put_replicated(variables.get("batch_stats", {}), mesh),
        opt_state=jax.jit(optimizer.init, out_shardings=replicated(mesh))(params),
    )
