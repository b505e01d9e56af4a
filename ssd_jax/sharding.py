"""The only file that knows the topology: the mesh, and how state and batches are sharded."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssd_jax.errors import UserError
from ssd_jax.hardware import cores

Tree = TypeVar("Tree")

# The axis of the mesh, and of `jax.shard_map`, over which the batch is sharded.
BATCH_AXIS = "data"
_DEVICES_FLAG = "--xla_force_host_platform_device_count"


def use_cpu_cores(batch_size: int, *, processes: int = 1, most: int | None = None) -> None:
    """Makes a device of each CPU core if there is no accelerator; call it before any use of JAX.

    Two devices train a convolutional network 1.5 times as fast as one device with two threads. The
    batch is a multiple of the devices of all processes. Each has the same number, at most `most`
    (default: all cores). JAX_NUM_CPU_DEVICES takes precedence, and so does the older setting in
    XLA_FLAGS.
    """
    chosen = _DEVICES_FLAG in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not chosen:
        possible = [n for n in range(1, (most or cores()) + 1) if batch_size % (n * processes) == 0]
        devices = max(possible, default=1)
        jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, "data", over the given devices or all of them.

    The axis is of type Auto, because with Explicit axes, the default of `jax.make_mesh`, the
    reshape in the heads raises `ShardingTypeError`.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def check_divides(batch_size: int, mesh: Mesh, *, together: int = 1) -> None:
    """Refuses a batch that cannot be split equally over the devices.

    So many consecutive images must be `together` on one device.
    """
    parts = batch_size // together
    if batch_size % together == 0 and parts % mesh.size == 0:
        return
    processes = jax.process_count()
    fewer = [n for n in range(processes, mesh.size, processes) if parts % n == 0][-1:]
    of_each = f"{together} images, which mosaics are made of, on each of " if together > 1 else ""
    raise UserError(
        f"config.batch_size: got {batch_size}, expected a multiple of {of_each}the {mesh.size} "
        "devices. Change it"
        + "".join(f", or use only {n} devices: {_hiding(mesh, n // processes)}" for n in fewer)
        + "."
    )


def _hiding(mesh: Mesh, seen: int) -> str:
    """The environment variable that limits the devices of a process to the first `seen`."""
    if mesh.devices.flat[0].platform == "cpu":
        return f"JAX_NUM_CPU_DEVICES={seen}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(seen))
    return f"CUDA_VISIBLE_DEVICES={','.join([*names][:seen])}"


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis split into one part per device, for batches."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def state_specs(tree: Any, mesh: Mesh, sharding: str) -> Any:
    """The `PartitionSpec` of each array of the training state, or of its shape.

    "replicated" shards nothing. "fsdp" shards arrays of two or more axes along the largest axis
    that the number of devices divides, the last one of equal axes; vectors are too small to be
    worth it.
    """

    def spec(leaf) -> PartitionSpec:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if sharding != "fsdp" or len(leaf.shape) < 2 or not axes:
            return PartitionSpec()
        cut = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return PartitionSpec(*(None,) * cut, BATCH_AXIS)

    return jax.tree.map(spec, tree)


def state_shardings(tree: Any, mesh: Mesh, sharding: str) -> Any:
    """`state_specs` on the mesh: the sharding of each array of the training state."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), state_specs(tree, mesh, sharding), is_leaf=_is_spec
    )


def shardings_of(tree: Any) -> Any:
    """The shardings of arrays."""
    return jax.tree.map(lambda x: x.sharding, tree)


def put(tree: Tree, shardings: Any) -> Tree:
    """Puts host arrays, the same on every process, on the devices, with these shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(
            np.shape(x), sharding, np.asarray(x).__getitem__
        ),
        tree,
        shardings,
    )


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Puts host arrays, the same on every process, on all devices."""
    return put(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Puts this process' rows of a global batch on its devices."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split(mesh), np.asarray(x)), batch
    )


def each_device_alone(function: Callable, mesh: Mesh) -> Callable:
    """`function(variables, *batches)` on every device's own rows, without communication."""

    def sharded(variables, *batches):
        specs = (PartitionSpec(), *(PartitionSpec(BATCH_AXIS) for _ in batches))
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(BATCH_AXIS)
        )(variables, *batches)

    return jax.jit(sharded)


def mean_gradient(function: Callable, mesh: Mesh, *, sharding: str) -> Callable:
    """`function(params, constants, batch) -> (gradient, others)`, the means over the devices.

    Each device calls it on its own rows with whole parameters, inside `jax.shard_map` over
    BATCH_AXIS. The gradient is returned with the sharding of the parameters: all-reduced for
    "replicated", reduce-scattered for "fsdp". `others` are returned whole.
    """

    def sharded(params, constants, batch):
        specs = state_specs(params, mesh, sharding)

        def on_device(params, constants, batch):
            params = jax.tree.map(_gathered, specs, params, is_leaf=_is_spec)
            gradient, others = function(params, constants, batch)
            return _means((gradient, others), (specs, jax.tree.map(lambda _: _WHOLE, others)))

        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, _WHOLE, PartitionSpec(BATCH_AXIS)),
            out_specs=(specs, _WHOLE),
        )(params, constants, batch)

    return sharded


_WHOLE = PartitionSpec()


def _is_spec(x: object) -> bool:
    return isinstance(x, PartitionSpec)


def _gathered(spec: PartitionSpec, piece: jax.Array) -> jax.Array:
    if spec == _WHOLE:
        # Each device has its own copy, because the gradient of a shared one is summed at every use.
        return jax.lax.pcast(piece, BATCH_AXIS, to="varying")
    return jax.lax.all_gather(piece, BATCH_AXIS, axis=spec.index(BATCH_AXIS), tiled=True)


def _means(tree: Tree, specs: Any) -> Tree:
    """Means over the devices, sharded by `specs`. Vectors and scalars are sent as one array.

    XLA combines reductions of the same time into one message, but at most 256 arrays.
    """

    def large(x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if spec == _WHOLE:
            return jax.lax.pmean(x, BATCH_AXIS)
        cut = spec.index(BATCH_AXIS)
        total = jax.lax.psum_scatter(x, BATCH_AXIS, scatter_dimension=cut, tiled=True)
        return total / jax.lax.axis_size(BATCH_AXIS)

    leaves, structure = jax.tree.flatten(tree)
    packed, unpack = ravel_pytree([x for x in leaves if x.ndim < 2])
    small = iter(unpack(jax.lax.pmean(packed, BATCH_AXIS)))
    places = jax.tree.leaves(specs, is_leaf=_is_spec)
    return jax.tree.unflatten(
        structure,
        [
            next(small) if x.ndim < 2 else large(x, spec)
            for x, spec in zip(leaves, places, strict=True)
        ],
    )


def whole(tree: Tree, mesh: Mesh) -> Tree:
    """A whole copy on every device of arrays that may be sharded, as under "fsdp"."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: Tree) -> Tree:
    return tree


def gather(tree: Tree) -> Tree:
    """Sharded arrays as whole NumPy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def any_process(flag: bool) -> jax.Array:
    """The number of devices [] whose process has set the flag; does not wait for the others."""
    mesh = make_mesh()
    flags = np.full(jax.local_device_count(), flag, np.int32)
    return _sum(mesh)(jax.make_array_from_process_local_data(split(mesh), flags))


@functools.cache
def _sum(mesh: Mesh) -> Callable:
    return jax.jit(jnp.sum, out_shardings=replicated(mesh))
