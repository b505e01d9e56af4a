"""A SageMaker training job: from the files under /opt/ml to a run of ours, and back.

The contract of the container is at docs.aws.amazon.com/sagemaker/latest/dg/, pages
your-algorithms-training-algo-running-container.html, your-algorithms-training-algo-output.html and
your-algorithms-training-signal-success-failure.html.
"""

import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ssd_jax import cluster
from ssd_jax import config as configs
from ssd_jax.children import run_child
from ssd_jax.config_check import check
from ssd_jax.data import codes
from ssd_jax.data.open import open_data
from ssd_jax.data.sources.base import Problems, names_are_numbers
from ssd_jax.errors import AnotherRun, DataError, NotTogether, Stopped, UserError
from ssd_jax.experiment import evaluate_every, total_steps
from ssd_jax.export.folder import META
from ssd_jax.files import write_text
from ssd_jax.importing import count_classes
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.network import build_network
from ssd_jax.runs.log import METRICS_FILE, read_metrics
from ssd_jax.runs.training import run_training
from ssd_jax.sagemaker.channels import (
    CHECKPOINTS,
    MODEL,
    Channels,
    find_channels,
    read_config_file,
)
from ssd_jax.sagemaker.hyperparameters import (
    OF_SETTINGS,
    RULES,
    frozen_paths,
    parse_hyperparameters,
    to_config,
)
from ssd_jax.sagemaker.log import EpochLog, log_to_stdout, logger
from ssd_jax.train.stopping import Stopping
from ssd_jax.weights.load import HEADS

# The port of the first host, to which the others connect.
PORT = 12355
# Variables with the paths of ImageNet weights, which SageMaker has in its container.
PRETRAINED = {"vgg-16": "SSD_JAX_PRETRAINED_VGG16", "resnet-50": "SSD_JAX_PRETRAINED_RESNET50"}
# The packages that write and check an ONNX model.
ONNX_PACKAGES = ("onnx", "onnxruntime")
# Where the hosts of a job find a folder that they share.
SHARED_FOLDER = (
    "Give a file system that all hosts of the job share (FSx for Lustre, EFS), with write access, "
    f"as the channel {CHECKPOINTS}."
)
# The prefix of folders in ROOT that hold an unfinished detector.
_SCRATCH = ".export-"


class Hosts(NamedTuple):
    """The machines of a job, in the same order on each of them."""

    names: tuple[str, ...]
    current: str


def run_job(root: pathlib.Path, assignments: Sequence[tuple[str, str]] = ()) -> None:
    """Runs the training job that the files under `root` describe, and writes its results there.

    `assignments` change settings of the config last, in the form of `config.override`. An error is
    also written to `ROOT/output/failure`.

    Raises:
      UserError: there is a mistake in the job.
      Stopped: SIGTERM; the run is saved, and the same job resumes it.
    """
    if not root.is_dir():
        raise UserError(
            f"{root}: there is no such folder. Give the --root that contains input/, e.g. /opt/ml."
        )
    log_to_stdout()
    failure = root / "output/failure"
    failure.unlink(missing_ok=True)

    def fail(error: Exception) -> None:
        # The console shows the first 1024 characters.
        whose = "ClientError" if isinstance(error, UserError | OSError) else "AlgorithmError"
        message = f"{whose}: {error or type(error).__name__}"
        logger.error(message)
        details = "".join(traceback.format_exception(error))
        write_text(failure, f"{message}\n\n{details}")

    try:
        with _in_the_words_of_a_job():
            _train(root, assignments, last_words=fail)
    except Stopped:
        raise
    except Exception as error:
        fail(error)
        raise


@contextlib.contextmanager
def _in_the_words_of_a_job() -> Iterator[None]:
    """Rewrites errors for a job, which has hyperparameters but neither --change nor --workdir.

    For a label that is too wide the hyperparameter is to blame, not the record.
    """
    try:
        yield
    except DataError as error:
        if error.code != codes.LABEL_WIDTH_SMALL:
            raise
        raise UserError(
            f"Invalid parameter value 'label_width': {error}. The default of a job is "
            f"{RULES['label_width'].default}."
        ) from error
    except AnotherRun as error:
        names = [OF_SETTINGS[name] for name in error.settings if name in OF_SETTINGS]
        which = f" (hyperparameters: {', '.join(names)})" if names else ""
        raise UserError(
            f"{error.problem}{which}. Resume with the same, or give another S3 URI for the "
            f"checkpoints, or an empty folder {CHECKPOINTS}/; to start with the weights of that "
            f"run, give its artefact as the channel {MODEL}."
        ) from error


def _train(
    root: pathlib.Path,
    assignments: Sequence[tuple[str, str]],
    *,
    last_words: Callable[[Exception], object],
) -> None:
    for path in root.glob(f"{_SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)  # left by a job that was killed
    given = read_config_file(root, "hyperparameters.json")
    logger.info("Merging with provided configuration from hyperparameters.json: %s", given)
    values = parse_hyperparameters(given)
    logger.info("Final configuration: %s", values)
    hosts = _hosts(root)
    channels = find_channels(root, hosts=len(hosts.names))
    try:
        cluster.start(
            batch_size=values["mini_batch_size"] * len(hosts.names),
            coordinator=f"{hosts.names[0]}:{PORT}",
            num_processes=len(hosts.names),
            process_id=hosts.names.index(hosts.current),
        )
    except NotTogether as error:
        numbered = ", ".join(f"{number} on {name}" for number, name in enumerate(hosts.names))
        raise UserError(
            f"{error.problem}. The processes are {numbered}. Start the job once on each of these "
            f"hosts; port {PORT} of {hosts.names[0]} must be free, and each must reach it by that "
            "name."
        ) from error
    workdir = pathlib.Path(channels.checkpoints or root / CHECKPOINTS)
    stopped = None
    with Stopping() as stopping:  # also during the export
        with cluster.together(), stopping.at_once():
            config = build_config(values, channels, hosts=len(hosts.names), assignments=assignments)
            metric = f"map_{config.evaluate.metric}"
            epoch_log = EpochLog(
                host=hosts.current,
                steps=config.steps,
                steps_per_epoch=config.evaluate.every_steps,
                batch_size=config.batch_size,
                metric=metric,
                best=_best_before(workdir / METRICS_FILE, metric),
            )
        try:
            cluster.check_shared(workdir, SHARED_FOLDER)
            run_training(
                config, workdir, stopping=stopping, observers=[epoch_log], last_words=last_words
            )
        except Stopped as stop:
            stopped = stop
        stopping.hold()
        with cluster.together():
            if jax.process_index() == 0:
                stopped = _leave_results(root, workdir, stopping, stopped)
        why = cluster.from_first(str(stopped or ""))
    if why:
        raise Stopped(why)
    if not channels.test:
        logger.info("Test data is not provided.")


def build_config(
    values: Mapping[str, Any],
    channels: Channels,
    *,
    hosts: int = 1,
    assignments: Sequence[tuple[str, str]] = (),
) -> ConfigDict:
    """The complete and checked config of a job; reads the train channel."""
    source = open_data(channels.train, problems=Problems("skip"), label_width=values["label_width"])
    images = len(source)
    if images != values["num_training_samples"]:
        logger.warning(
            "num_training_samples is %d, but the train channel has %d images: epochs are counted "
            "with the first number for lr_scheduler_step, and with the second for all else",
            values["num_training_samples"],
            images,
        )
    if values["kv_store"] == "dist_async" and hosts > 1:
        logger.warning("kv_store dist_async has no counterpart here: dist_sync is used")
    gpus = 0 if jax.default_backend() == "cpu" else jax.local_device_count()
    config = to_config(values, images=images, hosts=hosts, gpus=gpus)
    config.data.classes = _class_names(source.classes, values["num_classes"])
    roots = {"train": channels.train, "val": channels.validation, "test": channels.test}
    for split, place in roots.items():
        config.data[split].root = place
    config.weights.path = _weights(values, channels)
    configs.override(config, assignments)
    if channels.model and config.weights.path == channels.model and not config.weights.reinitialise:
        _check_model(values, channels.model)
    check(config)  # before `_freeze`, because other backbones than the job's have other layers
    if values["freeze_layer_pattern"]:
        _freeze(config, values["freeze_layer_pattern"])
    # The log counts epochs in whole numbers of steps, however they were given.
    steps = total_steps(config, images)
    every = min(max(1, round(evaluate_every(config, images) or steps)), steps)
    config.epochs, config.steps = None, steps
    config.evaluate.every_epochs, config.evaluate.every_steps = None, every
    return config


def _hosts(root: pathlib.Path) -> Hosts:
    found = read_config_file(root, "resourceconfig.json")
    names, current = found.get("hosts"), found.get("current_host")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in (*names, current)):
        raise UserError(
            f"resourceconfig.json: got {found}, expected current_host and the list hosts."
        )
    hosts = Hosts(tuple(sorted(names)), current)
    if hosts.current not in hosts.names:
        raise UserError(
            f"resourceconfig.json: current_host {hosts.current!r} is not one of "
            f"{list(hosts.names)}."
        )
    return hosts


def _class_names(found: Sequence[str], count: int) -> tuple[str, ...]:
    """The names of as many classes as the job has, in the order of their ids."""
    if len(found) > count:
        raise UserError(
            f"num_classes is {count}, but the train channel has {len(found)} classes: "
            f"{', '.join(found)}. Class ids count from 0, without background."
        )
    names = str if names_are_numbers(found) else "class_{}".format
    free = (name for name in map(names, itertools.count(len(found))) if name not in found)
    return (*found, *itertools.islice(free, count - len(found)))


def _weights(values: Mapping[str, Any], channels: Channels) -> str:
    if channels.model:
        logger.info("Start training from the model channel.")
        return channels.model
    if not values["use_pretrained_model"]:
        logger.info("Start training from random weights.")
        return ""
    variable = PRETRAINED[values["base_network"]]
    if not os.environ.get(variable):
        raise UserError(
            f"use_pretrained_model is 1, but the environment variable {variable} does not say "
            f"where the ImageNet weights of {values['base_network']} are. Set it to a weight file "
            "(a path, s3:// or hf://, see docs/weights.md), or use_pretrained_model to 0."
        )
    logger.info("Start training from pretrained model 1.")
    return os.environ[variable]


def _check_model(values: Mapping[str, Any], model: str) -> None:
    """Checks the number of classes, as the original does, with a message for a job."""
    count = count_classes(model)
    if count != values["num_classes"]:
        raise UserError(
            f"num_classes is {values['num_classes']}, but the detector in the model channel has "
            f"{count}: {model}. Give num_classes {count}, or leave the channel out. Outside "
            f"SageMaker, `ssd-jax sagemaker train --config.weights.reinitialise='{HEADS[0]}'` "
            "starts with new heads."
        )


def _freeze(config: ConfigDict, pattern: str) -> None:
    network = build_network(config, len(config.data.classes))
    shapes = variable_shapes(network.model, config.model.image_size)["params"]
    paths = list(flatten_dict({"params": shapes}, sep="/"))
    frozen = frozen_paths(pattern, config.model.backbone, paths)
    logger.info("Freezed parameters: [%s]", ",".join(frozen))
    config.optimizer.rate_multipliers = (
        *config.optimizer.rate_multipliers,
        *((path, 0.0) for path in frozen),
    )


def _leave_results(
    root: pathlib.Path, workdir: pathlib.Path, stopping: Stopping, stopped: Stopped | None
) -> Stopped | None:
    """Writes the detector to ROOT/model, and the reports of the run to ROOT/output/data.

    `stopped` is the request that ended the training. Returns it, or a request that came meanwhile.
    """
    if stopped and not workdir.is_dir():  # before the run has begun
        return stopped
    reports = root / "output/data"
    shutil.copytree(
        workdir, reports, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKPOINTS, ".*")
    )
    model = root / "model"
    model.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=_SCRATCH) as folder:
        exported = pathlib.Path(folder, "model")
        try:
            if not stopped:
                with stopping.at_once():
                    export = _export(workdir, exported, onnx=True)
        except Stopped as stop:
            stopped = stop
        if stopped:
            exported = exported.with_name("stopped")
            export = _export(workdir, exported, onnx=False)
        if export.returncode:
            problem = export.stderr.strip()[-1000:]
            if not stopped:
                raise UserError(f"the run is done, but its model is not exported: {problem}")
            # Before the first evaluation there is no best checkpoint.
            logger.warning("No model is written: %s", problem)
            return stopped
        # A folder counts as an exported detector once it has meta.json, so that comes last.
        for path in sorted(exported.iterdir(), key=lambda path: path.name == META):
            shutil.move(path, model / path.name)
    logger.info('Saved checkpoint to "%s"', model)
    return stopped


def _export(
    workdir: pathlib.Path, out: pathlib.Path, *, onnx: bool
) -> subprocess.CompletedProcess[str]:
    """Exports, with an ONNX model if it is wanted and possible."""
    # In a process of its own, because in this one JAX would wait for those of the other hosts.
    command = [sys.executable, "-m", "ssd_jax", "export", "--workdir", workdir]
    command += ["--out", out, "--no-archive"]  # SageMaker packs the folder
    without = "The model is written without an ONNX model, so only JAX can run it: %s"
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if not onnx:
        logger.info(without, "a stopped job has no time to make one")
    elif missing:
        logger.info(without, f"{', '.join(missing)} of the extra onnx is not installed")
    else:
        export = run_child([*command, "--onnx"], in_group=True)
        if not export.returncode:
            logger.info("The model is written with an ONNX model")
            return export
        # A run of days must not be lost because of an optional format.
        logger.warning(without, export.stderr.strip()[-1000:])
    return run_child(command, in_group=True)


def _best_before(metrics: pathlib.Path, metric: str) -> float:
    """The best metric of the earlier part of a resumed run, else 0."""
    records = read_metrics(metrics) if metrics.is_file() else []
    return max((record.get(metric) or 0.0 for record in records), default=0.0)
