"""What a machine can do with a config: the largest batch that fits into its memory."""

import math
from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.data.pipeline import cache_bytes, max_objects
from ssd_jax.errors import UserError
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.ops.mosaic import GROUP
from ssd_jax.sharding import make_mesh
from ssd_jax.train.compiled import batch_shapes, compile_step, memory_limit, step_memory
from ssd_jax.train.state import state_shapes

_GIB = 2**30


class FoundBatch(NamedTuple):
    """The largest batch of a device, and what was compiled on the way: images -> bytes."""

    per_device: int
    devices: int
    limit: int
    measured: dict[int, int]


def run_find_batch(config: ConfigDict, *, memory_gib: float | None = None) -> FoundBatch:
    """Prints the largest `config.batch_size` whose step fits, and what that rests on.

    Steps are compiled for the devices at hand, none is executed. `memory_gib` is the memory of a
    device, if not what JAX may take of it.
    """
    mesh = make_mesh()
    config = config.copy_and_resolve_references()
    config.data.doctor = False  # of the images only their number and their objects are wanted
    source = experiment.build_source(config, "train")
    limit = memory_limit(mesh) if memory_gib is None else int(memory_gib * _GIB)
    cached = 0
    if config.data.cache == "device":
        cached = cache_bytes(source, canvas=config.data.canvas) // mesh.size
    found = find_batch(
        config, mesh, classes=len(source.classes), objects=max_objects(source), limit=limit - cached
    )
    for images, needed in sorted(found.measured.items()):
        print(f"{images:6} images a device: {needed / _GIB:8.2f} GiB")
    print(
        f"largest batch: {found.per_device} images a device, config.batch_size="
        f"{found.per_device * mesh.size} on {mesh.size} x {mesh.devices.flat[0].device_kind}\n"
        f"assumed: {limit / _GIB:.2f} GiB a device"
        f"{' as told' if memory_gib is not None else ''}, of which {cached / _GIB:.2f} GiB for "
        f"data.cache = {config.data.cache!r}; sharding = {config.sharding!r}; at most "
        f"{max_objects(source)} objects an image; what XLA plans for the step, so leave some room "
        "for evaluation and for what the driver keeps"
    )
    return found


def find_batch(
    config: ConfigDict, mesh: Mesh, *, classes: int, objects: int, limit: int
) -> FoundBatch:
    """The largest batch of which a step needs at most `limit` bytes a device.

    Only batches count that the groups of BatchNorm and loss divide, and those of mosaics on each
    device.
    """
    groups = math.lcm(*(g for g in (config.model.batch_norm_group, config.loss.group) if g))
    unit = groups // math.gcd(groups, mesh.size)
    if config.augment.mosaic.probability:
        unit = math.lcm(unit, GROUP)
    network = experiment.build_network(config, classes)
    # The schedule does not need memory: any number of images does.
    schedule = experiment.build_schedule(config, images=config.batch_size)
    optimizer = experiment.build_optimizer(config, schedule)
    step = experiment.build_step(config, network, schedule, optimizer, mesh)
    variables = variable_shapes(network.model, config.model.image_size)
    averaged = config.optimizer.ema_decay > 0
    state = state_shapes(variables, optimizer, mesh, sharding=config.sharding, averaged=averaged)
    measured = {}

    def needed(units: int) -> int:
        images = units * unit
        batch = batch_shapes(
            images * mesh.size, canvas=config.data.canvas, max_objects=objects, mesh=mesh
        )
        measured[images] = step_memory(compile_step(step, state, batch, mesh)).total
        return measured[images]

    most = largest_within(needed, limit)
    if not most:
        raise UserError(
            f"memory: a step with {unit} images a device needs {measured[unit] / _GIB:.2f} GiB, "
            f"expected at most {limit / _GIB:.2f} GiB. Lower config.model.image_size, or take "
            "config.model.dtype=bfloat16 or config.sharding=fsdp."
        )
    return FoundBatch(most * unit, mesh.size, limit, measured)


def largest_within(needed: Callable[[int], int], limit: int) -> int:
    """The largest n from 1 on with `needed(n) <= limit`, 0 if there is none; `needed` rises.

    Four calls where it is a straight line; else every second guess halves what is left.
    """
    points = [(1, needed(1)), (2, needed(2))]
    fits = max((n for n, size in points if size <= limit), default=0)
    fails = min((n for n, size in points if size > limit), default=None)
    while fails is None or fails - fits > 1:
        (n0, size0), (n1, size1) = sorted(points)[-2:]
        slope = (size1 - size0) / (n1 - n0)
        guess = int(n1 + (limit - size1) / slope) if slope > 0 else 2 * fits
        if fails is None:
            guess = min(max(guess, fits + 1), 1024 * fits)
        elif len(points) % 2:
            guess = (fits + fails) // 2
        else:
            guess = min(max(guess, fits + 1), fails - 1)
        points.append((guess, needed(guess)))
        if points[-1][1] <= limit:
            fits = guess
        else:
            fails = guess
    return fits
