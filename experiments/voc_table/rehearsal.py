"""Checks before any GPU hour is spent: data, weights, memory and time of each row."""

import contextlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.stages import Compiled
from miniature import VOC_IMAGES
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.data.pipeline import max_objects, train_batches
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError, first_line
from ssd_jax.importing import start_from
from ssd_jax.models.initialise import init_variables, variable_shapes
from ssd_jax.network import Network, build_network
from ssd_jax.sharding import make_mesh, put_batch
from ssd_jax.train.compiled import batch_shapes, compile_step, memory_limit, step_memory

# Modelled FLOP/s of training a network on an H200 in bfloat16: the fraction of the 790 TFLOP/s of
# its matrix units that corresponds to 0.70 of the coarse roofline, at 512 px and a batch of 64.
MODELLED = {"vgg16": 0.51 * 790e12, "resnet50": 0.24 * 790e12}
TIMED_STEPS = 3
_GIB = 2**30


def rehearse(rows: dict[str, ConfigDict], *, seeds: int, miniature: bool) -> list[str]:
    """Prints what each row needs; returns all problems that prevent rows from being trained.

    On an accelerator, and in miniature, a step is run and timed. Elsewhere its time is modelled,
    and its memory, which depends on the machine, is printed but not checked.
    """
    problems, hours = [], []
    sources: dict[tuple[str, ...], Source] = {}
    runs_here = miniature or jax.default_backend() != "cpu"
    for name, config in rows.items():
        print(name, flush=True)
        found: list[str] = []
        needed = _hours(config, sources, found, official=not miniature, runs_here=runs_here)
        problems += [f"{name}: {text}" for text in found]
        if not found:
            hours.append(needed)
    print(
        f"{len(hours)} of {len(rows)} rows can be trained: with {seeds} seeds {len(hours) * seeds} "
        f"runs, {sum(hours) * seeds:.3g} device hours"
    )
    return problems


def _source(config, split, sources, *, official) -> Source:
    """Opens a split as a run does; the doctor's findings are cached for the runs."""
    place = config.data[split]
    key = (split, place.root, *place.image_sets)
    if key not in sources:
        source = experiment.build_source(config, split, classes=config.data.classes)
        expected = sum(VOC_IMAGES.get(tuple(name.split("/")), 0) for name in place.image_sets)
        if official and expected and len(source) != expected:
            raise UserError(
                f"config.data.{split}: got {len(source):,} usable images, expected the "
                f"{expected:,} of {', '.join(place.image_sets)}. Unpack the official files again."
            )
        sources[key] = source
    source = sources[key]
    _tell(split, f"{len(source):,} images, {len(source.annotations.labels):,} objects")
    return source


def _hours(config, sources, found: list[str], *, official, runs_here) -> float | None:
    """Device hours of a run; adds all problems that prevent it from being trained to `found`."""
    mesh = make_mesh()
    network = build_network(config, len(config.data.classes))
    train = hours = None
    with _told(found):
        train = _source(config, "train", sources, official=official)
    with _told(found):
        _source(config, "val", sources, official=official)
    with _told(found):
        shapes = variable_shapes(network.model, config.model.image_size)
        _tell("weights", _weights(config, shapes))
    with _told(found):
        if train is not None:
            compiled = _compiled(config, network, train, mesh)
            _check_memory(compiled, mesh, runs_here=runs_here)
            hours = _time(config, compiled, network, train, mesh, runs_here=runs_here)
    if train is None:
        _tell("memory", "not checked, nor was the time: both need the training images")
    return hours


@contextlib.contextmanager
def _told(found: list[str]) -> Iterator[None]:
    """Collects a problem, so that it does not hide others; each may take a day to fix."""
    try:
        yield
    except (UserError, OSError, jax.errors.JaxRuntimeError) as error:
        of_device = isinstance(error, jax.errors.JaxRuntimeError)
        if of_device and "RESOURCE_EXHAUSTED" not in str(error):
            raise  # A lost device is lost for the other rows too.
        found.append(first_line(error) if of_device else str(error))
        _tell("PROBLEM", found[-1])


def _check_memory(compiled: Compiled, mesh: Mesh, *, runs_here) -> None:
    memory, limit = (b / _GIB for b in (step_memory(compiled).total, memory_limit(mesh)))
    devices = _devices(mesh)
    if runs_here and memory > limit:
        raise UserError(
            f"memory: a step needs {memory:.2f} GiB per device, expected at most the {limit:.2f} "
            f"of {devices}. Use more devices, or --config.model.dtype=bfloat16."
        )
    elsewhere = "" if runs_here else "; other devices may need another amount"
    _tell("memory", f"{memory:.2f} GiB per device, planned by XLA for {devices}{elsewhere}")


def _time(config, compiled: Compiled, network, source: Source, mesh: Mesh, *, runs_here) -> float:
    """Device hours of a run."""
    if runs_here:
        seconds = mesh.size * _timed(config, compiled, network, source, mesh)
        basis = (
            f"the fastest of {TIMED_STEPS} steps here, on {_devices(mesh)}, without waiting for "
            "data"
        )
    else:
        seconds = modelled_seconds(config, network)
        basis = "a model: one H200 at 0.70 of its coarse roofline"
    steps = experiment.total_steps(config, len(source))
    _tell(
        "time",
        f"{seconds * steps / 3600:.3g} device hours per run without evaluations: {steps:,} steps "
        f"of {seconds:.3f} device seconds, from {basis}",
    )
    return seconds * steps / 3600


def _devices(mesh: Mesh) -> str:
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def _weights(config: ConfigDict, shapes: dict) -> str:
    if not config.weights.path:
        return "none, from scratch"
    _, report = start_from(
        shapes,
        config.weights.path,
        backbone=config.model.backbone,
        reinitialise=config.weights.reinitialise,
        config=config,
    )
    return f"{config.weights.path}: {len(report.loaded)} of {len(jax.tree.leaves(shapes))} arrays"


def _compiled(config, network, source: Source, mesh: Mesh) -> Compiled:
    """The training step at its largest image size."""
    schedule = experiment.build_schedule(config, len(source))
    optimizer = experiment.build_optimizer(config, schedule)
    size = max(experiment.training_sizes(config))
    step = experiment.build_step(config, network, schedule, optimizer, mesh, image_size=size)
    state = experiment.build_state_shapes(config, network, optimizer, mesh)
    batch = batch_shapes(
        config.batch_size, canvas=config.data.canvas, max_objects=max_objects(source), mesh=mesh
    )
    return compile_step(step, state, batch, mesh)


def _timed(config, compiled: Compiled, network, source: Source, mesh: Mesh) -> float:
    """Seconds of the fastest of a few steps on one batch."""
    batches = train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        canvas=config.data.canvas,
        max_objects=max_objects(source),
        num_threads=0,
    )
    batch = put_batch(next(batches), mesh)
    state = experiment.build_state(
        config,
        init_variables(network.model, config.model.image_size, seed=config.seed),
        experiment.build_optimizer(config, experiment.build_schedule(config, len(source))),
        mesh,
    )
    seconds = []
    for _ in range(TIMED_STEPS + 1):
        since = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - since)
    return min(seconds[1:])  # the first one is slower


def modelled_seconds(config: ConfigDict, network: Network) -> float:
    """Seconds of a step on one H200; float32 has half the peak and twice the bytes."""
    rates = [rate for name, rate in MODELLED.items() if config.model.backbone.startswith(name)]
    if not rates:
        raise UserError(
            f"time: there is no model for the backbone {config.model.backbone}, only for "
            f"{', '.join(MODELLED)}. Repeat this on the machine that is to train it."
        )
    shapes = variable_shapes(network.model, config.model.image_size)
    image = jax.ShapeDtypeStruct((1, *2 * (config.model.image_size,), 3), jnp.float32)
    forward = jax.jit(lambda variables, x: network.model.apply(variables, x, train=False))
    flops = forward.lower(shapes, image).cost_analysis()["flops"]
    # A step is three forward passes: its own, and the gradients of the maps and of the kernels.
    return 3 * flops * config.batch_size / rates[0] * (2 if config.model.dtype == "float32" else 1)


def _tell(part: str, text: str) -> None:
    print(f"  {part:8} {text}", flush=True)
