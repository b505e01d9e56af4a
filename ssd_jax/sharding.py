"""The only file that knows the topology: the mesh, and where state and batches lie on it."""

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

# The axis of the mesh, and of `jax.shard_map`, that the batch is cut along.
BATCH_AXIS = "data"
_DEVICES_FLAG = "--xla_force_host_platform_device_count"


def use_cpu_cores(batch_size: int, *, processes: int = 1, on_this_host: int = 1) -> None:
    """Without an accelerator, makes a device of each core; call it before anything else of JAX.

    Two devices train a convolutional network half as fast again as one device with two threads.
    Of several processes, those on one host share its cores. The devices of all of them together
    divide the batch. JAX_NUM_CPU_DEVICES overrules it, and so does the older way of XLA_FLAGS.
    """
    chosen = _DEVICES_FLAG in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not chosen:
        most = max(1, min(cores(), os.cpu_count() // on_this_host))
        possible = [n for n in range(1, most + 1) if batch_size % (n * processes) == 0]
        devices = max(possible, default=1)
        jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis, "data", over the given devices or all of them.

    The axis is of type Auto: on Explicit axes, the default of `jax.make_mesh`, the reshape in the
    heads raises `ShardingTypeError`.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def check_divides(batch_size: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be cut into equal parts, one for each device."""
    if batch_size % mesh.size == 0:
        return
    processes = jax.process_count()
    fewer = [n for n in range(processes, mesh.size, processes) if batch_size % n == 0][-1:]
    raise UserError(
        f"config.batch_size: got {batch_size}, expected a multiple of the {mesh.size} devices. "
        "Give another one"
        + "".join(f", or hide all but {n} devices: {_hiding(mesh, n // processes)}" for n in fewer)
        + "."
    )


def _hiding(mesh: Mesh, seen: int) -> str:
    """What shows a process only so many devices, in its environment."""
    if mesh.devices.flat[0].platform == "cpu":
        return f"JAX_NUM_CPU_DEVICES={seen}"
    return f"CUDA_VISIBLE_DEVICES={','.join(map(str, range(seen)))}"


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis cut into one piece a device: batches."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def state_specs(tree: Any, mesh: Mesh, sharding: str) -> Any:
    """How each array of the training state, or its shape, is cut, as a `PartitionSpec`.

    "replicated" cuts nothing. "fsdp" cuts an array of two or more axes along the largest one that
    the number of devices divides, the last of equals; vectors are too small to be worth a message.
    """

    def spec(leaf) -> PartitionSpec:
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if sharding != "fsdp" or len(leaf.shape) < 2 or not axes:
            return PartitionSpec()
        cut = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return PartitionSpec(*(None,) * cut, BATCH_AXIS)

    return jax.tree.map(spec, tree)


def state_shardings(tree: Any, mesh: Mesh, sharding: str) -> Any:
    """`state_specs` on the mesh: where each array of the training state lies."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), state_specs(tree, mesh, sharding), is_leaf=_is_spec
    )


def shardings_of(tree: Any) -> Any:
    """Where arrays lie."""
    return jax.tree.map(lambda x: x.sharding, tree)


def put(tree: Tree, shardings: Any) -> Tree:
    """Puts host arrays, the same on every process, where `shardings` say."""
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
    BATCH_AXIS. The gradient comes back as `sharding`, "replicated" or "fsdp", lays out the
    parameters: all-reduced or reduce-scattered. `others` come back whole.
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
        # A copy of the device's own: the gradient of a shared one would be summed at every use.
        return jax.lax.pcast(piece, BATCH_AXIS, to="varying")
    return jax.lax.all_gather(piece, BATCH_AXIS, axis=spec.index(BATCH_AXIS), tiled=True)


def _means(tree: Tree, specs: Any) -> Tree:
    """Over the devices, cut as `specs` say. Vectors and scalars go in one piece.

    XLA joins what is reduced at the same time into one message, but no more than 256 arrays.
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
    """A whole copy on every device of what may be cut, as under "fsdp"."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree: Tree) -> Tree:
    return tree


def gather(tree: Tree) -> Tree:
    """The whole of arrays that are split over the mesh, as NumPy arrays on every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def any_process(flag: bool) -> jax.Array:
    """On every process how many devices [] have a process that says so; none waits for another."""
    mesh = make_mesh()
    flags = np.full(jax.local_device_count(), flag, np.int32)
    return _sum(mesh)(jax.make_array_from_process_local_data(split(mesh), flags))


@functools.cache
def _sum(mesh: Mesh) -> Callable:
    return jax.jit(jnp.sum, out_shardings=replicated(mesh))
