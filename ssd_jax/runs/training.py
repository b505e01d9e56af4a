"""A training from its config to its report: assemble the parts, run the loop, measure."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Compiled
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.cluster import check_shared, from_first, run_facts, tell, together
from ssd_jax.config_check import check, images_together
from ssd_jax.data.pipeline import max_objects
from ssd_jax.data.sources.base import Source
from ssd_jax.detector import open_checkpoints
from ssd_jax.errors import UserError
from ssd_jax.evaluation.metrics import speed, summary
from ssd_jax.files import make_folder
from ssd_jax.importing import import_report
from ssd_jax.locks import only_training
from ssd_jax.network import build_network, build_predict
from ssd_jax.report.collect import waiting_hint
from ssd_jax.runs.before_training import (
    check_cache,
    check_without_data,
    open_sources,
    without_places,
)
from ssd_jax.runs.describe_data import describe_data
from ssd_jax.runs.first_state import first_state
from ssd_jax.runs.log import METRICS_FILE, PICTURES_FOLDER, Observer, Reporter, read_metrics
from ssd_jax.runs.outcome import (
    Measured,
    data_report,
    evaluate_variables,
    headline,
    measure,
    table,
    where_things_are,
    write_result,
)
from ssd_jax.runs.same_run import (
    Change,
    allowed_changes,
    check_goes_on,
    describe_changes,
    describe_unchanged,
    record_and_save,
)
from ssd_jax.runs.training_data import device_cache_bytes, host_batches, mesh_batches
from ssd_jax.sharding import check_divides, each_device_alone, make_mesh, whole
from ssd_jax.train.checkpoint_manifest import has_trained
from ssd_jax.train.compiled import batch_shapes, compile_step, memory_report
from ssd_jax.train.divergence import divergence
from ssd_jax.train.hooks import Augment, Hooks, Loss
from ssd_jax.train.loop import train
from ssd_jax.train.state import TrainState
from ssd_jax.train.step import image_size_of
from ssd_jax.train.stopping import Progress, Stopping
from ssd_jax.train.watchdog import Watchdog
from ssd_jax.visualize.run import draw_augmented


def run_training(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    mesh: Mesh | None = None,
    time_limit: float | None = None,
    stopping: Stopping | None = None,
    observers: Sequence[Observer] = (),
    last_words: Callable[[Exception], object] = lambda error: None,
    called: str | pathlib.Path | None = None,
    change: Collection[str] = (),
    loss: Loss | None = None,
    augment: Augment | None = None,
    sources: Mapping[str, Source] = MappingProxyType({}),
) -> Measured:
    """Trains from the start or from the last checkpoint in `workdir`; measures, draws, reports.

    `mesh` defaults to all devices. `time_limit`, in seconds from this call, is one way to stop the
    run; docs/reliability.md lists the others. A caller gives its own `stopping` if it must also
    know of a stop request that comes after the training. `observers` are passed to the `Reporter`,
    `last_words` to the `Watchdog`. `called` is the user's name for the folder of the run, if that
    is not `workdir`. `change` names the settings of an earlier run in `workdir` that take the
    values of `config` when it is resumed.

    `loss` and `augment` replace those of the config, see `train.step.train_step`; their names are
    recorded, and "loss" and "augment" may be named in `change`. `sources` replace the splits
    "train", "val" or "test" of `config.data`, whose paths are then not recorded.

    Raises:
      UserError: the config has an impossible value, which is found first; or a part of the run
        cannot be built, read or resumed; or a given function returns the wrong type or shape.
      Stopped: the run was asked to stop. The same call resumes it.
    """
    mesh = mesh or make_mesh()
    with together():
        check(config)
        check_divides(config.batch_size, mesh, together=images_together(config))
        config = without_places(config, sources)
    workdir, hooks = pathlib.Path(workdir), Hooks(loss, augment)
    with (
        contextlib.ExitStack() as stack,
        contextlib.nullcontext(stopping) if stopping else Stopping(time_limit) as stopping,
        Watchdog(workdir, **config.watchdog, last_words=last_words) as watchdog,
    ):
        with together():
            if jax.process_index() == 0:
                make_folder(workdir)
                stack.enter_context(only_training(workdir, workdir))
        measured = _run_training(
            config, workdir, mesh, stopping, watchdog, observers, change, hooks, sources
        )
    tell(where_things_are(config, measured, called or workdir))
    tell(headline(config, measured))
    return measured


def _run_training(
    config, workdir, mesh, stopping, watchdog, observers, change, hooks, given
) -> Measured:
    changes = _shared_changes(config, workdir, change, hooks, given)
    sources = _shared_sources(config, given, stopping)
    watchdog.mesh = mesh
    check_cache(config, sources["train"], mesh)
    with together():
        check_goes_on(config, workdir, sources, changes, mesh=mesh)

    def watched(batches, phase="evaluation"):
        for batch in stopping.between(batches):
            watchdog.enter(phase)
            yield batch
        watchdog.enter("metric")

    _train(config, workdir, mesh, sources, changes, hooks, stopping, watchdog, watched, observers)
    # A phase of its own, because loading a checkpoint and compiling again may take long.
    watchdog.enter("last evaluation")
    last = functools.partial(watched, phase="last evaluation")
    tell(f"measuring the {config.checkpoint.select} checkpoint")
    measured = measure(config, workdir, mesh=mesh, watch=last, sources=sources)
    watchdog.enter("report")
    # The other processes wait until it is written: JAX ends all if one leaves minutes later.
    with together():
        if jax.process_index() == 0:
            write_result(config, workdir, measured, sources)
            hint = waiting_hint(read_metrics(workdir / METRICS_FILE))
            if hint and config.data.cache == "none":
                tell(hint)
    tell(table(measured))
    return measured


def _train(
    config, workdir, mesh, sources, changes, hooks, stopping, watchdog, watched, observers
) -> None:
    """Trains to the end of the run, unless the checkpoints in `workdir` are already there."""
    source = sources["train"]
    network = build_network(config, len(source.classes))
    schedule = experiment.build_schedule(config, len(source))
    optimizer = experiment.build_optimizer(config, schedule)
    begin = _go_on if from_first(has_trained(workdir)) else first_state
    state, weights = begin(config, network, optimizer, mesh, source)
    # The two kinds of compiled program: a training step, and the detections of a batch.
    steps = experiment.build_steps(
        config, network, schedule, optimizer, mesh, images=len(source), **hooks._asdict()
    )
    predict = each_device_alone(build_predict(config, network), mesh)

    def evaluate(state):
        variables = whole(state.variables, mesh)
        evaluation = evaluate_variables(
            config, predict, variables, source=sources["val"], mesh=mesh, watch=watched
        )
        return from_first(summary(evaluation, source.classes)), speed(evaluation)

    total_steps = experiment.total_steps(config, len(source))
    early_stopping = experiment.build_early_stopping(config, len(source))
    with open_checkpoints(config, workdir) as checkpoints:
        state, progress = _resumed(checkpoints, state, classes=source.classes, of=total_steps)
        start_step = int(state.step)
        if not start_step and checkpoints.latest_step() == 0:
            weights = {"imported": import_report(workdir)}
        for line in describe_changes(config, changes, images=len(source), step=start_step):
            tell(line)
        goes_on = start_step < total_steps or progress.evaluated_step < start_step
        with together():
            # Only once the state exists: if it cannot be built, the run stays as it was. Steps that
            # do not fit into memory are found later; the same --change then reverts the settings.
            if jax.process_index() == 0:
                record_and_save(
                    config,
                    workdir,
                    sources,
                    weights,
                    changes,
                    own=hooks.names,
                    step=start_step,
                    is_start=goes_on or bool(changes),
                )
        if goes_on:
            if jax.process_index() == 0 and not start_step:
                _draw_first_batch(config, workdir, source, hooks.augment)
            batches = mesh_batches(config, source, mesh, start_step=start_step)
            stopping.hold()
            watchdog.enter("compilation", start_step)
            with (
                Reporter(
                    workdir,
                    total_steps=total_steps,
                    start_step=start_step,
                    steps_per_epoch=len(source) / config.batch_size,
                    active=jax.process_index() == 0,
                    observers=observers,
                ) as reporter,
                watchdog.no_waiting(),
            ):
                state = train(
                    state,
                    compiled_steps(steps, state, config, source, mesh),
                    batches,
                    progress=progress,
                    total_steps=total_steps,
                    evaluate=evaluate,
                    save=lambda state, measured, progress: checkpoints.save(
                        state, measured, classes=source.classes, progress=progress._asdict()
                    ),
                    diverged=functools.partial(
                        divergence,
                        workdir=workdir,
                        source=source,
                        learning_rate=config.optimizer.learning_rate,
                        clip_norm=config.optimizer.clip_norm,
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
        tell(
            f"ended early, at step {int(state.step)} of {total_steps}: {early_stopping.metric} has "
            f"not improved in {early_stopping.patience} evaluations"
        )


def _shared_changes(config, workdir, change, hooks, given) -> dict[str, Change]:
    """The allowed changes, checked without data; the same on all processes."""
    with together() as facts:
        facts |= run_facts(config) | hooks.names
        check_without_data(config, reads_weights=not has_trained(workdir), given=given)
    check_shared(workdir, "Give all processes a --workdir that their hosts share.")
    with together():
        changes = allowed_changes(config, workdir, change, own=hooks.names)
    for line in describe_unchanged(config, change, changes, own=hooks.names):
        tell(line)
    return changes


def _shared_sources(config, given, stopping) -> dict[str, Source]:
    """The splits by name, the same on all processes."""
    with together() as facts:
        with stopping.at_once():  # it may take long
            sources = open_sources(config, given)
        for name, each in sources.items():
            facts |= {f"data.{name}, {k}": value for k, value in data_report(each).items()}
    for line in describe_data(config, sources):
        tell(line)
    return sources


def _go_on(config, network, optimizer, mesh, source) -> tuple[TrainState, Any]:
    """The shapes of the state to be restored; no initial weights are needed."""
    state = experiment.build_state_shapes(config, network, optimizer, mesh)
    tell(experiment.describe_network(config, network, state.variables, mesh))
    return state, None


def _resumed(checkpoints, state, *, classes, of) -> tuple[TrainState, Progress]:
    """The state to start from: that of the newest checkpoint, if there is one."""
    newest = checkpoints.latest_step()
    if not newest and isinstance(state.step, jax.ShapeDtypeStruct):
        raise UserError(
            "the checkpoints of this training were damaged and have been renamed. Give the same "
            "command again to start from the beginning."
        )
    if newest == 0:  # written by `weights import`, before any training
        variables = checkpoints.restore_variables(0, state.variables, classes=classes)
        state = state.beginning_with(variables)
        tell("starting with the imported weights")
    if not newest:
        return state, Progress()
    if newest > of:
        raise UserError(
            f"the newest checkpoint is of step {newest}, but the run would end at step {of}. Set "
            "config.steps or config.epochs to at least as many as before."
        )
    state = checkpoints.restore(newest, state, classes=classes)
    tell(f"resumed at step {newest} of {of}")
    return state, Progress(**checkpoints.progress(newest))


def _draw_first_batch(config, workdir, source, augment) -> None:
    """Draws the first augmented images, as the network sees them."""
    size = image_size_of(0, experiment.training_sizes(config), seed=config.seed)
    draw_augmented(
        next(host_batches(config, source, start_step=0, num_threads=0)),
        workdir / PICTURES_FOLDER / "augmented.png",
        classes=source.classes,
        augment=augment or experiment.build_augment(config, len(source), image_size=size),
    )


def compiled_steps(
    steps: Mapping[int, Callable], state: TrainState, config: ConfigDict, source: Source, mesh: Mesh
) -> Callable[[int], Compiled]:
    """The program of each step, compiled once per image size; prints the memory that they take."""
    batch = batch_shapes(
        config.batch_size, canvas=config.data.canvas, max_objects=max_objects(source), mesh=mesh
    )
    programs, kept = {}, device_cache_bytes(config, source, mesh)
    for size, step in steps.items():
        programs[size] = compile_step(step, state, batch, mesh)
        at = f"{size} px, " if len(steps) > 1 else ""
        tell(at + memory_report(programs[size], mesh, kept=kept))
    sizes = tuple(steps)
    return lambda step: programs[image_size_of(step, sizes, seed=config.seed)]
