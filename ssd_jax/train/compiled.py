"""The training step as a compiled program, and the memory that it takes on a device."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Traced

from ssd_jax.data.decode import empty_rows
from ssd_jax.hardware import memory_bytes
from ssd_jax.sharding import replicated, shardings_of, split
from ssd_jax.train.state import TrainState
from ssd_jax.types import Batch


class StepMemory(NamedTuple):
    """Bytes on one device: the arguments of a step, and what it needs in addition at its peak."""

    arguments: int
    temporary: int

    @property
    def total(self) -> int:
        """The peak while the step runs."""
        return self.arguments + self.temporary


def batch_shapes(batch_size: int, *, canvas: int, max_objects: int, mesh: Mesh) -> Batch:
    """A global batch as `jax.ShapeDtypeStruct`s, sharded over the mesh."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=split(mesh)),
        empty_rows(0, canvas=canvas, max_objects=max_objects),
    )


def compile_step(
    step: Callable, state: TrainState, batch: Batch, mesh: Mesh, *, options: dict | None = None
) -> Compiled:
    """Compiles `step(state, batch)`, which donates the state and returns it with its sharding.

    Both may be `jax.ShapeDtypeStruct`s with their shardings: nothing is executed. `options` are
    passed to XLA.
    """
    return trace_step(step, state, batch, mesh).lower().compile(options)


def trace_step(step: Callable, state: TrainState, batch: Batch, mesh: Mesh) -> Traced:
    """The traced program that `compile_step` compiles."""
    places = shardings_of(state), replicated(mesh)
    return jax.jit(step, out_shardings=places, donate_argnums=0).trace(state, batch)


def step_memory(compiled: Compiled) -> StepMemory:
    """The memory that XLA has planned for, without what XLA and the driver reserve."""
    plan = compiled.memory_analysis()
    new_outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    return StepMemory(plan.argument_size_in_bytes, plan.temp_size_in_bytes + new_outputs)


def memory_limit(mesh: Mesh) -> int:
    """The bytes that JAX may use on a device; for a CPU device, its share of the host's memory."""
    stats = mesh.local_devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return memory_bytes() // len(mesh.local_devices)


def memory_report(compiled: Compiled, mesh: Mesh, *, kept: int = 0) -> str:
    """One line about the memory of a step; `kept` bytes of each device are used by data.cache."""
    memory, limit = step_memory(compiled), max(0, memory_limit(mesh) - kept)
    needed, held, there = (f"{b / 2**30:.2f} GiB" for b in (memory.total, memory.arguments, limit))
    there = f"the {there} that data.cache leaves," if kept else there
    text = f"memory per device: {needed} of {there} in a step, {held} of it for state and batch"
    if memory.total > limit:
        text += (
            "; that does not fit. Lower config.batch_size: `ssd-jax benchmark --find-batch` "
            "estimates what fits"
        )
        text += ", or use config.data.cache=none" if kept else ""
    return text
