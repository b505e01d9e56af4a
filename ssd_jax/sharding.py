"""The only file that knows the topology: the mesh, and where state and batches lie on it."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def use_cpu_cores(batch_size: int) -> None:
    """Without an accelerator, makes a device of each core; call it before anything else of JAX.

    Two devices train a convolutional network half as fast again as one device with two threads.
    Their number divides the batch; JAX_NUM_CPU_DEVICES overrules it.
    """
    if jax.config.jax_num_cpu_devices == -1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        devices = max(n for n in range(1, cores + 1) if batch_size % n == 0)
        jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, "data", over the given devices or all of them.

    The axis is of type Auto: on Explicit axes, the default of `jax.make_mesh`, the reshape in the
    heads raises `ShardingTypeError`.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device: parameters and optimizer state."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis cut into one piece a device: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Puts host arrays, the same on every process, on all devices."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            replicated(mesh), np.asarray(x), np.shape(x)
        ),
        tree,
    )


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Puts this process' rows of a global batch on its devices."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split(mesh), np.asarray(x)), batch
    )


def each_device_alone(function: Callable, mesh: Mesh) -> Callable:
    """`function(variables, *batches)` on every device's own rows, without communication."""

    def sharded(variables, *batches):
        specs = (PartitionSpec(), *(PartitionSpec("data") for _ in batches))
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("data"))(
            variables, *batches
        )

    return jax.jit(sharded)


def gather(tree: Tree) -> Tree:
    """The whole of arrays that are split over the mesh, as NumPy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
