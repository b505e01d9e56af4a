"""A config as programs to be timed: its training step, its predictions, and the bare network."""

import functools
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Traced
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.benchmark.roofline import Kernel, program_kernels
from ssd_jax.caches import cache_folder
from ssd_jax.data.open import open_data
from ssd_jax.data.pipeline import decode_rows, max_objects
from ssd_jax.data.shapes import write_shapes
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables
from ssd_jax.network import Network, build_network, build_predict
from ssd_jax.sharding import (
    each_device_alone,
    gather,
    make_mesh,
    mean_gradient,
    put_batch,
    put_replicated,
)
from ssd_jax.train.compiled import StepMemory, step_memory, trace_step
from ssd_jax.types import Batch

# Those of VOC, for a config that does not name its classes.
_CLASSES = 20
# Synthetic images; larger batches repeat them.
_PICTURES = 32


class Workload(NamedTuple):
    """A config with its devices, data and network; `batch` is a training batch on the host."""

    config: ConfigDict
    mesh: Mesh
    source: Source
    network: Network
    batch: Batch


class Program(NamedTuple):
    """A compiled program; `call()` launches it, `images` is its number of images on all devices."""

    call: Callable[[], Any]
    images: int
    kernels: list[Kernel]
    compile_seconds: float
    memory: StepMemory


def make_workload(
    config: ConfigDict,
    mesh: Mesh,
    *,
    own_data: bool = False,
    classes: int | None = None,
    objects: int | None = None,
) -> Workload:
    """The workload of a config on the mesh, with synthetic images or its `own_data`.

    `classes` is the number of classes if neither the config nor its own data have it. `objects` is
    the number of objects per image, all of them real; the default is what the images need.
    """
    if config.batch_size % mesh.size:
        raise UserError(
            f"config.batch_size: got {config.batch_size}, expected a multiple of the {mesh.size} "
            "devices."
        )
    if own_data:
        source = experiment.build_source(config, "train")
        classes = len(source.classes)
    else:
        source = _made_up(config.data.canvas)
        classes = classes or len(config.data.classes) or _CLASSES
    batch = decode_rows(
        source,
        np.arange(config.batch_size) % len(source),
        canvas=config.data.canvas,
        max_objects=max_objects(source),
    )
    if objects is not None:
        batch = with_objects(batch, objects)
    return Workload(config, mesh, source, build_network(config, classes), batch)


def _made_up(canvas: int) -> Source:
    folder = cache_folder() / "benchmark" / f"shapes-{canvas}"
    if not (folder / "ImageSets/Main/train.txt").exists():  # written last
        write_shapes(folder, train=_PICTURES, val=0, seed=0, image_size=canvas)
    return open_data(str(folder), split=("train",))


def with_objects(batch: Batch, objects: int) -> Batch:
    """The batch with this many objects in each image, with its labels and random boxes."""
    corners = np.random.default_rng(0).random((len(batch.valid), objects, 2, 2), np.float32)
    boxes = np.sort(corners, axis=2).reshape(len(corners), objects, 4)
    pick = np.arange(objects) % batch.valid.shape[1]
    taken = {name: getattr(batch, name)[:, pick] for name in ("labels", "difficult")}
    return batch._replace(boxes=boxes, **taken, valid=np.ones(boxes.shape[:2], bool))


def make_program(traced: Traced, call: Callable, images: int) -> Program:
    """Compiles; `call` turns the compiled program into the function to be timed."""
    start = perf_counter()
    compiled = traced.lower().compile()
    seconds = perf_counter() - start
    kernels = program_kernels(traced.jaxpr)
    return Program(call(compiled), images, kernels, seconds, step_memory(compiled))


def stateful(state: Any, *arguments: Any) -> Callable:
    """The `call` of a program that returns (state, result) and donates the state to itself."""

    def with_program(compiled):
        held = [state]

        def call():
            held[0], result = compiled(held[0], *arguments)
            return result

        return call

    return with_program


def train_program(work: Workload) -> Program:
    """The training step."""
    config, mesh = work.config, work.mesh
    schedule = experiment.stand_in_schedule(config)
    optimizer = experiment.build_optimizer(config, schedule)
    step = experiment.build_step(config, work.network, schedule, optimizer, mesh)
    state = experiment.build_state(config, first_variables(work), optimizer, mesh)
    batch = put_batch(work.batch, mesh)
    return make_program(
        trace_step(step, state, batch, mesh), stateful(state, batch), config.batch_size
    )


def bare_program(work: Workload) -> Program:
    """The network alone: forward, backward from a trivial loss, momentum."""
    model = work.network.model

    def gradient_of_rows(params, batch_stats, images):
        def loss_of(params):
            outputs, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = sum(jnp.square(x).mean() for x in outputs)
            return loss, (loss, updates.get("batch_stats", {}))

        return jax.grad(loss_of, has_aux=True)(params)

    mean = mean_gradient(gradient_of_rows, work.mesh, sharding="replicated")

    def step(state, images):
        params, momentum, batch_stats = state
        gradient, (loss, batch_stats) = mean(params, batch_stats, images)
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, momentum, gradient)
        params = jax.tree.map(lambda p, m: p - 1e-5 * m, params, momentum)
        return (params, momentum, batch_stats), loss

    variables = put_replicated(first_variables(work), work.mesh)
    state = (
        variables["params"],
        jax.tree.map(jnp.zeros_like, variables["params"]),
        variables["batch_stats"],
    )
    images = put_batch(_noise_images(work, work.config.batch_size), work.mesh)
    traced = jax.jit(step, donate_argnums=0).trace(state, images)
    return make_program(traced, stateful(state, images), work.config.batch_size)


def evaluate_program(work: Workload) -> Program:
    """A batch of an evaluation, from the memory of the host to detections there."""
    batch = _evaluation_batch(work)
    variables = put_replicated(first_variables(work), work.mesh)
    predict = each_device_alone(build_predict(work.config, work.network), work.mesh)
    traced = predict.trace(variables, *put_batch((batch.canvas, batch.extent), work.mesh))

    def with_program(compiled):
        pictures = batch.canvas, batch.extent
        return lambda: gather(compiled(variables, *put_batch(pictures, work.mesh)))

    return make_program(traced, with_program, len(batch.canvas))


def forward_program(work: Workload) -> Program:
    """The network alone on as many images as an evaluation's batch."""
    variables = put_replicated(first_variables(work), work.mesh)
    images = put_batch(_noise_images(work, len(_evaluation_batch(work).canvas)), work.mesh)
    forward = each_device_alone(
        lambda variables, images: work.network.model.apply(variables, images, train=False),
        work.mesh,
    )
    traced = forward.trace(variables, images)
    return make_program(traced, lambda f: functools.partial(f, variables, images), len(images))


def predict_program(work: Workload) -> Program:
    """One image on one device, from the memory of the host to detections there."""
    device = make_mesh(list(work.mesh.devices.flat[:1]))
    return evaluate_program(_of_one_image(work)._replace(mesh=device))


def _of_one_image(work: Workload) -> Workload:
    config = work.config.copy_and_resolve_references()
    config.evaluate.batch_size = 1
    return work._replace(config=config)


def first_variables(work: Workload) -> dict[str, Any]:
    """The initial variables of a training from scratch."""
    return init_variables(work.network.model, work.config.model.image_size, seed=work.config.seed)


def _noise_images(work: Workload, images: int) -> np.ndarray:
    side = work.config.model.image_size
    return np.random.default_rng(0).standard_normal((images, side, side, 3), np.float32)


def _evaluation_batch(work: Workload) -> Batch:
    images = math.ceil(work.config.evaluate.batch_size / work.mesh.size) * work.mesh.size
    return Batch(*(field[np.arange(images) % len(field)] for field in work.batch))
