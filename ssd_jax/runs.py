"""What the verbs of the command line do: put the parts together, run them, tell the outcome."""

import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import config as configs
from ssd_jax import experiment, gallery
from ssd_jax.cluster import check_shared, fingerprint, from_first, run_facts, together
from ssd_jax.data.device_cache import cached_batches, fill_device_cache
from ssd_jax.data.pipeline import cache_bytes, max_objects, share_of_process, train_batches
from ssd_jax.data.sources.base import Source
from ssd_jax.detector import open_checkpoints
from ssd_jax.errors import UserError
from ssd_jax.evaluation.metrics import summary
from ssd_jax.importing import start_from
from ssd_jax.models.initialise import init_variables
from ssd_jax.outcome import (
    PICTURES,
    Measured,
    data_report,
    evaluate_variables,
    headline,
    measure,
    table,
    write_evaluation,
    write_result,
)
from ssd_jax.report.starts import record_start
from ssd_jax.reporting import Observer, Reporter
from ssd_jax.sharding import each_device_alone, make_mesh, put_batch, whole
from ssd_jax.train.compiled import batch_shapes, compile_step, memory_report
from ssd_jax.train.loop import train
from ssd_jax.train.state import create_state
from ssd_jax.train.stopping import Progress, Stopping
from ssd_jax.train.watchdog import Watchdog
from ssd_jax.types import Batch

CONFIG_FILE = "config.json"
# Settings that change how a run is computed and told, but not what comes out of it.
HARDWARE = ("sharding", "data.cache", "data.threads", "data.doctor", "log_every_steps",
            "checkpoint.every_steps", "checkpoint.keep_latest", "watchdog.factor",
            "watchdog.minimum_seconds", "watchdog.first_seconds")  # fmt: skip


def run_training(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    mesh: Mesh | None = None,
    time_limit: float | None = None,
    observers: Sequence[Observer] = (),
) -> Measured:
    """Trains from the start or from the last checkpoint in `workdir`; measures, draws, reports.

    `mesh` is all devices if it is not given. `time_limit`, in seconds from this call, is one way to
    be asked to stop; docs/reliability.md has the others. `observers` are those of the `Reporter`.

    Raises:
      Stopped: the run was asked to stop. The same call goes on with it.
    """
    workdir = pathlib.Path(workdir)
    with Stopping(time_limit) as stopping, Watchdog(workdir, **config.watchdog) as watchdog:
        return _run_training(
            config, workdir, mesh, stopping=stopping, watchdog=watchdog, observers=observers
        )


def _run_training(config, workdir, mesh, *, stopping, watchdog, observers) -> Measured:
    # ---- data ----
    with together() as facts:
        facts |= run_facts(config)
        sources = _open_sources(config)
        for name, each in sources.items():
            facts |= {f"data.{name}, {k}": value for k, value in data_report(each).items()}
    check_shared(workdir)
    source, validation = sources["train"], sources["val"]
    for split_name, each in sources.items():
        _tell(f"{split_name + ':':6} {each.describe()}")
    mesh = watchdog.mesh = mesh or make_mesh()
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
    with together() as facts:
        variables = init_variables(network.model, config.model.image_size, seed=config.seed)
        load_report = None
        if config.weights.path:
            variables, load_report = start_from(
                variables,
                config.weights.path,
                backbone=config.model.backbone,
                reinitialise=config.weights.reinitialise,
                config=config,
            )
            _tell(load_report)
        _settle_config(config, workdir)
        facts["weights to begin with"] = fingerprint(variables)
    state = create_state(
        variables,
        optimizer,
        mesh,
        sharding=config.sharding,
        averaged=config.optimizer.ema_decay > 0,
    )
    _tell(_describe(config, network, variables, mesh))
    first_process = jax.process_index() == 0

    # ---- the two programs: a step, and the detections of a batch ----
    step = experiment.build_step(config, network, schedule, optimizer, mesh)
    measure_variables = functools.partial(
        evaluate_variables,
        config,
        each_device_alone(experiment.build_predict(config, network), mesh),
        source=validation,
        mesh=mesh,
    )

    def watched(batches):
        for batch in stopping.between(batches):
            watchdog.enter("evaluation")
            yield batch
        watchdog.enter("metric")

    # ---- train, from where an earlier run stopped ----
    total_steps = experiment.total_steps(config, len(source))
    early_stopping = experiment.build_early_stopping(config, len(source))
    progress = Progress()
    with open_checkpoints(config, workdir) as checkpoints:
        newest = from_first(checkpoints.latest_step())
        start_step = newest or 0
        if newest == 0:  # of `weights import`: there was no training yet
            variables = checkpoints.restore_variables(0, state.variables, classes=source.classes)
            state = state.beginning_with(variables)
            _tell("begins with the imported weights")
        if start_step:
            state = checkpoints.restore(start_step, state, classes=source.classes)
            progress = Progress(
                **checkpoints.progress(start_step) or {"evaluated_step": start_step}
            )
            _tell(f"resumed at step {start_step} of {total_steps}")
        if start_step < total_steps or progress.evaluated_step < start_step:
            if first_process:
                record_start(workdir, step=start_step, weights=load_report and load_report.facts)
            batches = _batches(config, source, mesh, start_step=start_step)
            if not start_step and first_process:
                first = next(_host_batches(config, source, start_step=0, num_threads=0))
                gallery.draw_augmented(
                    first,
                    workdir / PICTURES / "augmented.png",
                    classes=source.classes,
                    **experiment.augmentation_settings(config),
                )
            stopping.hold()
            watchdog.enter("compilation", start_step)
            with (
                Reporter(
                    workdir,
                    total_steps=total_steps,
                    start_step=start_step,
                    active=first_process,
                    observers=observers,
                ) as reporter,
                watchdog.no_waiting(),
            ):
                state = train(
                    state,
                    _compiled(step, state, config, source, mesh),
                    batches,
                    progress=progress,
                    total_steps=total_steps,
                    evaluate=lambda state: from_first(
                        summary(
                            measure_variables(whole(state.variables, mesh), watch=watched),
                            source.classes,
                        )
                    ),
                    save=lambda state, measured, progress: checkpoints.save(
                        state, measured, classes=source.classes, progress=progress._asdict()
                    ),
                    reporter=reporter,
                    stopping=stopping,
                    watchdog=watchdog,
                    early_stopping=early_stopping,
                    evaluate_every=experiment.evaluate_every(config, len(source)),
                    save_every=config.checkpoint.every_steps,
                    log_every=config.log_every_steps,
                )

    if int(state.step) < total_steps:
        _tell(
            f"ended early, at step {int(state.step)} of {total_steps}: no better "
            f"{early_stopping.metric} in {early_stopping.patience} evaluations"
        )

    # ---- the result ----
    measured = measure(config, workdir, mesh=mesh, watch=watched)
    watchdog.enter("report")
    if first_process:
        write_result(config, workdir, measured, sources)
    _tell(table(measured))
    _tell(_where_things_are(workdir))
    _tell(headline(config, measured))
    return measured


def _open_sources(config: ConfigDict) -> dict[str, Source]:
    """The splits by name; a mistake in any of them is found now and costs no training."""
    source = experiment.build_source(config, "train")
    validation = experiment.build_source(config, "val", classes=source.classes)
    decides = config.checkpoint.select == "best" or config.early_stopping.enabled
    if decides and not validation.object_counts.any():
        raise UserError(
            f"config.checkpoint.select: got {config.checkpoint.select!r}, and early_stopping."
            f"enabled: {config.early_stopping.enabled}, but the val split has no object to measure "
            "by. Give another val split, or select 'last' without early stopping."
        )
    sources = {"train": source, "val": validation}
    if config.data.test.root:
        sources["test"] = experiment.build_source(config, "test", classes=source.classes)
    return sources


def run_evaluation(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    split: str | None,
    step: str | None,
    out: pathlib.Path | None = None,
) -> Measured:
    """Measures a checkpoint of a run and prints the outcome, as the run itself did at its end.

    `out` is a folder for the numbers and their plots.
    """
    measured = measure(config, workdir, split=split, step=step)
    if out and jax.process_index() == 0:
        write_evaluation(config, out, measured)
    _tell(f"{measured.split}: {measured.source.describe()}")
    _tell(table(measured))
    _tell(headline(config, measured))
    return measured


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


def _compiled(step, state, config, source, mesh):
    """The step as a program; tells the memory that it takes."""
    batch = batch_shapes(
        config.batch_size,
        canvas=config.data.canvas,
        max_objects=max_objects(source),
        mesh=mesh,
    )
    compiled = compile_step(step, state, batch, mesh)
    _tell(memory_report(compiled, mesh))
    return compiled


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
