"""What the verbs of the command line do: put the parts together, run them, tell the outcome."""

import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from ssd_jax import config as configs
from ssd_jax import experiment, gallery, visualize
from ssd_jax.data.decode import decode_image
from ssd_jax.data.device_cache import cached_batches, fill_device_cache
from ssd_jax.data.pipeline import cache_bytes, max_objects, share_of_process, train_batches
from ssd_jax.detector import Detector, open_checkpoints
from ssd_jax.errors import UserError
from ssd_jax.evaluation.run import summary
from ssd_jax.importing import start_from
from ssd_jax.models.initialise import init_variables
from ssd_jax.outcome import (
    PICTURES,
    Measured,
    evaluate_variables,
    headline,
    measure,
    table,
    write_result,
)
from ssd_jax.reporting import Reporter, write_json
from ssd_jax.sharding import each_device_alone, make_mesh, put_batch, replicated, split
from ssd_jax.train.loop import train
from ssd_jax.train.state import create_state
from ssd_jax.train.step import train_step
from ssd_jax.types import Batch

CONFIG_FILE = "config.json"
# Settings that change how a run is computed and told, but not what comes out of it.
HARDWARE = ("data.cache", "data.threads", "data.doctor", "log_every_steps",
            "checkpoint.every_steps", "checkpoint.keep_latest")  # fmt: skip
# Decoded pictures are drawn at no more than this many pixels a side.
DRAWN_SIDE = 1600


def run_training(
    config: ConfigDict, workdir: pathlib.Path, *, mesh: Mesh | None = None
) -> Measured:
    """Trains from the start or from the last checkpoint in `workdir`; measures, draws, reports.

    `mesh` is all devices if it is not given.
    """
    workdir = pathlib.Path(workdir)

    # ---- data ----
    source = experiment.build_source(config, "train")
    validation = experiment.build_source(config, "val", classes=source.classes)
    if config.checkpoint.select == "best" and not validation.object_counts.any():
        raise UserError(
            "config.checkpoint.select: got 'best', but the val split has no object to measure by. "
            "Give another val split, or select 'last'."
        )
    sources = {"train": source, "val": validation}
    if config.data.test.root:  # read now, so that a mistake in it does not cost the training
        sources["test"] = experiment.build_source(config, "test", classes=source.classes)
    for split_name, each in sources.items():
        _tell(f"{split_name + ':':6} {each.describe()}")
    mesh = mesh or make_mesh()
    if config.data.cache != "none":
        _tell(_describe_cache(config, source, mesh))

    # ---- network, state ----
    if config.batch_size % mesh.size:
        raise UserError(
            f"config.batch_size: got {config.batch_size}, expected a multiple of the {mesh.size} "
            "devices."
        )
    network = experiment.build_network(config, len(source.classes))
    schedule = experiment.build_schedule(config, len(source))
    optimizer = experiment.build_optimizer(config, schedule)
    variables = init_variables(network.model, config.model.image_size, seed=config.seed)
    if config.weights.path:
        variables, load_report = start_from(
            variables,
            config.weights.path,
            backbone=config.model.backbone,
            reinitialise=config.weights.reinitialise,
            config=config,
        )
        _tell(load_report)
    state = create_state(variables, optimizer, mesh)
    _tell(_describe(config, network, variables, mesh))
    _settle_config(config, workdir)
    first_process = jax.process_index() == 0

    # ---- the two programs: a step, and the detections of a batch ----
    augmentation = experiment.augmentation_settings(config)
    step_function = jax.jit(
        functools.partial(
            train_step,
            model=network.model,
            optimizer=optimizer,
            schedule=schedule,
            anchors=network.anchors,
            augmentation=augmentation,
            mean=config.preprocess.mean,
            std=config.preprocess.std,
            loss=experiment.loss_settings(config),
            rate_multipliers=config.optimizer.rate_multipliers,
        ),
        in_shardings=(replicated(mesh), split(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    measure_variables = functools.partial(
        evaluate_variables,
        config,
        each_device_alone(experiment.build_predict(config, network), mesh),
        source=validation,
        mesh=mesh,
    )

    # ---- train, from where an earlier run stopped ----
    total_steps = experiment.total_steps(config, len(source))
    with open_checkpoints(config, workdir) as checkpoints:
        start_step = checkpoints.latest_step() or 0
        if checkpoints.latest_step() == 0:  # of `weights import`: there was no training yet
            variables = checkpoints.restore_variables(0, state.variables, classes=source.classes)
            state = state.replace(**variables)
            _tell("begins with the imported weights")
        if start_step:
            state = checkpoints.restore(start_step, state, classes=source.classes)
            _tell(f"resumed at step {start_step} of {total_steps}")
        if start_step < total_steps:
            batches = _batches(config, source, mesh, start_step=start_step)
            if not start_step and first_process:
                first = next(_host_batches(config, source, start_step=0, num_threads=0))
                gallery.draw_augmented(
                    first,
                    workdir / PICTURES / "augmented.png",
                    classes=source.classes,
                    **augmentation,
                )
            with Reporter(
                workdir,
                total_steps=total_steps,
                start_step=start_step,
                active=first_process,
            ) as reporter:
                train(
                    state,
                    step_function,
                    batches,
                    total_steps=total_steps,
                    evaluate=lambda state: summary(
                        measure_variables(state.variables), source.classes
                    ),
                    save=functools.partial(checkpoints.save, classes=source.classes),
                    reporter=reporter,
                    evaluate_every=experiment.evaluate_every(config, len(source)),
                    save_every=config.checkpoint.every_steps,
                    log_every=config.log_every_steps,
                )

    # ---- the result ----
    measured = measure(config, workdir, mesh=mesh)
    if first_process:
        write_result(config, workdir, measured, sources)
    _tell(table(measured))
    _tell(_where_things_are(workdir))
    _tell(headline(config, measured))
    return measured


def run_evaluation(
    config: ConfigDict, workdir: pathlib.Path, *, split: str | None, step: str | None
) -> Measured:
    """Measures a checkpoint of a run and prints the outcome, as the run itself did at its end."""
    measured = measure(config, workdir, split=split, step=step)
    _tell(f"{measured.split}: {measured.source.describe()}")
    _tell(table(measured))
    _tell(headline(config, measured))
    return measured


def run_prediction(
    workdir: pathlib.Path,
    images: Sequence[pathlib.Path],
    out: pathlib.Path,
    *,
    step: str | None,
    score: float,
) -> None:
    """Writes `NAME.json` and `NAME.png`, the drawing, into `out` for every image NAME.*."""
    for image in images:
        if not image.is_file():
            raise UserError(f"{image}: no such file. Give pictures, JPEG or PNG.")
        if image.resolve() == (out / f"{image.stem}.png").resolve():
            raise UserError(f"{image}: its drawing would overwrite it. Choose another --out.")
    names = [image.stem for image in images]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"several images are called {', '.join(twice)}, so their results would overwrite each "
            "other. Give them in separate calls with another --out each."
        )
    detector = Detector.load(workdir, step=step)
    out.mkdir(parents=True, exist_ok=True)
    for image in tqdm(images, desc="predicting", disable=None):
        data = image.read_bytes()
        (found,) = detector([data], names=[str(image)])
        pixels, extent, size = decode_image(data, str(image), DRAWN_SIDE)
        scale = np.array([size[1], size[0], size[1], size[0]])
        write_json(
            out / f"{image.stem}.json",
            {
                "image": str(image),
                "width": size[1],
                "height": size[0],
                "detections": [
                    {
                        "class": detector.classes[label],
                        "score": confidence,
                        "box_xyxy_px": box * scale,
                    }
                    for box, confidence, label in zip(
                        found.boxes, found.scores, found.labels, strict=True
                    )
                ],
            },
        )
        shown = found.scores >= score
        drawing = visualize.draw_boxes(
            pixels[: extent[0], : extent[1]],
            found.boxes[shown],
            found.labels[shown],
            classes=detector.classes,
            scores=found.scores[shown],
        )
        visualize.save_png(out / f"{image.stem}.png", drawing)
    _tell(f"{len(images)} images: {out}/NAME.json and {out}/NAME.png")


def _host_batches(config, source, *, start_step, num_threads) -> Iterator[Batch]:
    return train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        canvas=config.data.canvas,
        max_objects=max_objects(source),
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=num_threads,
        cache="ram" if config.data.cache == "ram" else "none",
    )


def _batches(config, source, mesh, *, start_step) -> Iterator[tuple[list[str], Batch]]:
    """Names of the images of this process, and the batch on the mesh, without end."""
    if config.data.cache != "device":
        return _batches_from_host(config, source, mesh, start_step=start_step)
    # Filled here, before the clocks and the progress bar of the training start.
    cache = fill_device_cache(
        source,
        mesh,
        canvas=config.data.canvas,
        max_objects=max_objects(source),
        num_threads=config.data.threads,
    )
    share = share_of_process(config.batch_size, jax.process_index(), jax.process_count())
    batches = cached_batches(
        cache,
        mesh,
        num_images=len(source),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
    )
    return (([source.names[i] for i in indices[share]], batch) for indices, batch in batches)


def _batches_from_host(config, source, mesh, *, start_step) -> Iterator[tuple[list[str], Batch]]:
    names = source.names
    with contextlib.closing(
        _host_batches(config, source, start_step=start_step, num_threads=config.data.threads)
    ) as batches:
        for batch in batches:
            yield [names[index] for index in batch.sample_id], put_batch(batch, mesh)


def _settle_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json, or refuses to go on with a run that was started with another config."""
    path = workdir / CONFIG_FILE
    if path.is_file() and any(workdir.glob("checkpoints/[0-9]*")):
        before = dict(configs.flat_items(configs.read_config(path)))
        changed = [
            f"config.{name} was {before[name]!r} and is now {value!r}"
            for name, value in configs.flat_items(config)
            if before[name] != value and name not in HARDWARE
        ]
        if changed:
            raise UserError(
                f"{workdir}: the run there was started with another config: {'; '.join(changed)}. "
                "Go on with the same one, or choose another --workdir."
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        configs.save_config(config, path)


def _describe(config, network, variables, mesh: Mesh) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return (
        f"network: {config.model.backbone}, {config.model.image_size} px, {parameters:,} "
        f"parameters, {len(network.anchors):,} anchors; {mesh.size} x "
        f"{mesh.devices.flat[0].device_kind}"
    )


def _describe_cache(config, source, mesh: Mesh) -> str:
    """The memory that the cache will take; refused where there is not as much."""
    needed = cache_bytes(source, canvas=config.data.canvas)
    if config.data.cache == "ram":
        # All there is: what other programs and the system's own cache hold can be given back.
        where, free = "memory", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        where = f"the memory of {mesh.size} devices"
        of_one = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
        free = of_one and of_one * mesh.size
    if free and needed > free:
        raise UserError(
            f"config.data.cache: {config.data.cache!r} needs {needed / 2**30:.1f} GiB of {where}, "
            f"expected at most the {free / 2**30:.1f} GiB there are. Take 'none', or a smaller "
            "config.data.canvas."
        )
    return f"decoded training pictures are kept in {where}: {needed / 2**20:,.1f} MiB"


def _where_things_are(workdir: pathlib.Path) -> str:
    # As it was called, because in a virtual environment the bare name may not be on the path.
    command = sys.argv[0] if sys.argv[0].endswith("ssd-jax") else "ssd-jax"
    return f"""
In {workdir}:
  pictures/       curves, augmented images, detections next to ground truth, precision and recall
  metrics.jsonl   losses and metrics over the steps; tensorboard/ has the same
  report.json     the result and how it was measured
  config.json     every setting
  checkpoints/    the last ones and the best one
What next:
  {command} evaluate --workdir {workdir}
  {command} predict --workdir {workdir} IMAGE... --out {workdir}/predictions
"""


def _tell(text: object) -> None:
    """Prints on one process of all."""
    if jax.process_index() == 0:
        print(text, flush=True)
