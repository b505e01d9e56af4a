"""The largest batch of a config that fits into the memory of the machine."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.data.pipeline import max_objects
from ssd_jax.errors import UserError, first_line
from ssd_jax.network import build_network
from ssd_jax.ops.mosaic import GROUP
from ssd_jax.runs.training_data import device_cache_bytes
from ssd_jax.train.compiled import batch_shapes, compile_step, memory_limit, step_memory

_GIB = 2**30
# The search ends when a batch that is larger by this fraction would not fit.
_CLOSE = 1 / 16
# On a CPU code generation takes most of the time, and memory is planned before it.
_QUICK_ON_CPU = {"xla_backend_optimization_level": 0}


class FoundBatch(NamedTuple):
    """The largest batch that fits a device, to within _CLOSE.

    `measured` has all batches that were compiled: images -> bytes that their step needs.
    """

    per_device: int
    devices: int
    limit: int
    measured: dict[int, int]


def run_find_batch(
    config: ConfigDict, mesh: Mesh, *, memory_gib: float | None = None
) -> FoundBatch:
    """Prints an estimate of the largest `config.batch_size` whose step fits, and its assumptions.

    A batch that is larger by a sixteenth does not fit. Steps are compiled for the devices, but none
    is executed. `memory_gib` is the memory of a device; the default is what JAX may use of it.
    """
    config = config.copy_and_resolve_references()
    config.data.doctor = False  # only the numbers of images and objects are needed
    source = experiment.build_source(config, "train")
    limit = memory_limit(mesh) if memory_gib is None else int(memory_gib * _GIB)
    cached = device_cache_bytes(config, source, mesh)
    if cached >= limit:
        raise UserError(
            f"memory: data.cache = {config.data.cache!r} needs {cached / _GIB:.2f} GiB per device, "
            f"expected less than {limit / _GIB:.2f} GiB. Use config.data.cache=ram or a smaller "
            "config.data.canvas."
        )
    found = find_batch(
        config, mesh, classes=len(source.classes), objects=max_objects(source), limit=limit - cached
    )
    print(
        f"largest batch: {found.per_device} images per device, config.batch_size="
        f"{found.per_device * mesh.size} on {mesh.size} x {mesh.devices.flat[0].device_kind}\n"
        f"assumed: {limit / _GIB:.2f} GiB per device"
        f"{' as given' if memory_gib is not None else ''}, of which {cached / _GIB:.2f} GiB for "
        f"data.cache = {config.data.cache!r}; sharding = {config.sharding!r}; at most "
        f"{max_objects(source)} objects per image. This is XLA's plan for the step: leave some "
        "room for evaluation and for the driver"
    )
    return found


def find_batch(
    config: ConfigDict, mesh: Mesh, *, classes: int, objects: int, limit: int
) -> FoundBatch:
    """An estimate of the largest batch whose step needs at most `limit` bytes per device.

    The search starts with the batch of the config and prints each batch that it compiles. Only
    batches count that are multiples of the groups of BatchNorm and loss, and on each device of the
    mosaic group.
    """
    groups = math.lcm(*(g for g in (config.model.batch_norm_group, config.loss.group) if g))
    unit = groups // math.gcd(groups, mesh.size)
    if config.augment.mosaic.probability:
        unit = math.lcm(unit, GROUP)
    network = build_network(config, classes)
    schedule = experiment.stand_in_schedule(config)
    optimizer = experiment.build_optimizer(config, schedule)
    largest = max(experiment.training_sizes(config))
    step = experiment.build_step(config, network, schedule, optimizer, mesh, image_size=largest)
    state = experiment.build_state_shapes(config, network, optimizer, mesh)
    options = _QUICK_ON_CPU if jax.default_backend() == "cpu" else None
    measured = {}

    def needed(units: int) -> int:
        images = units * unit
        batch = batch_shapes(
            images * mesh.size, canvas=config.data.canvas, max_objects=objects, mesh=mesh
        )
        print(f"{images:6} images per device: ", end="", flush=True)
        try:
            plan = compile_step(step, state, batch, mesh, options=options)
        except jax.errors.JaxRuntimeError as error:  # a GPU tries kernels while it compiles
            print(f"does not compile: {first_line(error)}", flush=True)
            return limit + 1
        measured[images] = step_memory(plan).total
        print(f"{measured[images] / _GIB:8.2f} GiB", flush=True)
        return measured[images]

    start = max(1, config.batch_size // mesh.size // unit)
    most = largest_within(needed, limit, start=start, close=_CLOSE)
    if not most:
        known = unit in measured
        needs = f"needs {measured[unit] / _GIB:.2f} GiB" if known else "does not compile"
        raise UserError(
            f"memory: a step with {unit} images per device {needs}, expected at most "
            f"{limit / _GIB:.2f} GiB. Lower config.model.image_size, or use "
            "config.model.dtype=bfloat16 or config.sharding=fsdp."
        )
    return FoundBatch(most * unit, mesh.size, limit, measured)


def largest_within(
    needed: Callable[[int], int], limit: int, *, start: int = 1, close: float = 0.0
) -> int:
    """About the largest n >= 1 with `needed(n) <= limit`, 0 if there is none; `needed` increases.

    n + 1 + n * close is certainly too large. Takes four calls if `needed` is a straight line;
    otherwise every second guess halves the interval.
    """
    points = {start: needed(start)}
    fits, fails = (start, None) if points[start] <= limit else (0, start)
    guess = 2 * start if fits else start // 2
    while fails is None or fails - fits > 1 + int(fits * close):
        points[guess] = needed(guess)
        if points[guess] <= limit:
            fits = guess
        else:
            fails = guess
        # On the line through the two points nearest to the limit; a little less, to fit surely.
        (n0, size0), (n1, size1) = sorted(points.items(), key=lambda p: abs(p[1] - limit))[:2]
        slope = (size1 - size0) / (n1 - n0)
        guess = int((n0 + (limit - size0) / slope) / (1 + close / 2)) if slope > 0 else 2 * fits
        guess = max(guess, fits + 1 + int(fits * close))
        if fails is None:
            guess = min(guess, 1024 * fits)
        elif len(points) % 2:
            guess = (fits + fails) // 2
        else:
            guess = min(guess, fails - 1)
    return fits
