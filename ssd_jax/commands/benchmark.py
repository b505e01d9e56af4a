"""`ssd-jax benchmark`."""

import os
import re

from ssd_jax.children import SMALL_MEMORY
from ssd_jax.commands.common import (
    is_printed,
    local_path,
    positive,
    positive_number,
    refuse_misplaced,
    verb,
)

NOTE = """\
Without --find-batch and --against it measures the training step, evaluation and prediction, their
parts, the input pipeline and the start-up time, relative to a matrix product and a copy on the same
devices. Images are synthetic. docs/performance.md explains each figure.
  ssd-jax benchmark --config FILE --find-batch
  ssd-jax benchmark --config FILE --against OTHER --measure predict
  ssd-jax benchmark --config FILE --against 'python peer.py' --metric metrics.step.p50"""

# Options that cannot be used with each kind of measurement.
_MISPLACED = {
    "without --find-batch or --against": ("--memory-gib", "--measure", "--metric"),
    "with --find-batch": ("--measure", "--metric", "--rounds", "--classes", "--own-data", "--json",
                          "--profile"),
    "with --against FILE": ("--memory-gib", "--metric", "--profile"),
    "with --against COMMAND": ("--memory-gib", "--profile"),
}  # fmt: skip


def add(verbs) -> None:
    """Adds the verb."""
    benchmark = verb(
        verbs,
        "benchmark",
        _benchmark,
        "find out how fast a config runs on this machine, and what limits it",
        settings=True,
        example="ssd-jax benchmark --config configs/voc0712_vgg16_300.py --json speed.json",
        note=NOTE,
    )
    benchmark.add_argument(
        "--config",
        required=True,
        metavar="FILE[:VARIANT]",
        help="config file, e.g. configs/bccd.py",
    )
    what = benchmark.add_mutually_exclusive_group()
    what.add_argument(
        "--find-batch",
        action="store_true",
        help="estimate the largest batch that fits in memory; compiles only, runs nothing",
    )
    what.add_argument(
        "--against",
        metavar="FILE|COMMAND",
        help="alternate with another config (same --config.NAME=VALUE) or a shell command and "
        "print the ratio; a single word ending in .py or .json is a config",
    )
    benchmark.add_argument(
        "--memory-gib",
        type=positive_number,
        metavar="GIB",
        help="with --find-batch: memory of a device (default: what JAX may use of it)",
    )
    benchmark.add_argument(
        "--measure",
        choices=("train", "evaluate", "predict"),
        help="with --against: a training step, a batch to evaluate or one image to predict "
        "(default: train)",
    )
    benchmark.add_argument(
        "--metric",
        metavar="NAME.NAME",
        help="with --against COMMAND: the seconds under this name in the JSON of its last output "
        "line (default: its running time)",
    )
    benchmark.add_argument(
        "--devices", type=positive, metavar="N", help="number of devices to use (default: all)"
    )
    benchmark.add_argument(
        "--rounds", type=positive, metavar="N", help="number of measurements (default: 5)"
    )
    benchmark.add_argument(
        "--classes",
        type=positive,
        metavar="N",
        help="number of classes, if the config does not list them",
    )
    benchmark.add_argument(
        "--own-data", action="store_true", help="use the config's images instead of synthetic ones"
    )
    benchmark.add_argument("--no-start", action="store_true", help="do not measure start-up")
    benchmark.add_argument(
        "--json",
        type=local_path,
        metavar="FILE",
        help="write the figures; - prints them as the last line, where --metric reads them",
    )
    benchmark.add_argument(
        "--profile",
        type=local_path,
        metavar="DIR",
        help="write a trace for TensorBoard and ui.perfetto.dev",
    )


def _benchmark(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.files import json_line, make_folder, write_json

    _check(options)
    rounds = options.rounds or 5
    assignments = configs.split_assignments(rest)
    config = _config(options.config, assignments)
    if options.profile:
        make_folder(options.profile)
    if options.against and not _is_config(options.against):
        # The command may use the same GPU. JAX reads this when it opens the devices.
        os.environ.update(SMALL_MEMORY | os.environ)
    pictures = {"own_data": options.own_data, "classes": options.classes}
    start = {}
    if not (options.find_batch or options.against or options.no_start):
        from ssd_jax.benchmark.start import measure_starts

        # Before this process opens the devices.
        start = {"start": measure_starts(config, devices=options.devices, **pictures)}
    from ssd_jax.benchmark.machine import choose_devices
    from ssd_jax.benchmark.table import comparison_table, table
    from ssd_jax.benchmark.workload import make_workload
    from ssd_jax.config_check import images_together

    mesh = choose_devices(config.batch_size // images_together(config), options.devices)
    if options.find_batch:
        from ssd_jax.benchmark.find_batch import run_find_batch

        run_find_batch(config, mesh, memory_gib=options.memory_gib)
        return
    work = make_workload(config, mesh, **pictures)
    if options.against:
        from ssd_jax.benchmark.compare import run_comparison

        other = options.against
        if _is_config(other):
            other = make_workload(_config(other, assignments), mesh, **pictures)
        result = run_comparison(
            work,
            other,
            names=(options.config, options.against),
            measure=options.measure or "train",
            metric=options.metric,
            rounds=rounds,
        )
        print(comparison_table(result))
    else:
        from ssd_jax.benchmark.measure import measure

        result = {"config": options.config}
        result |= measure(work, rounds=rounds, profile=options.profile) | start
        print(table(result))
    if is_printed(options.json):
        print(json_line(result), end="")
    elif options.json:
        write_json(options.json, result)


def _check(options):
    if options.find_batch:
        asked = "with --find-batch"
    elif options.against:
        asked = f"with --against {'FILE' if _is_config(options.against) else 'COMMAND'}"
    else:
        asked = "without --find-batch or --against"
    given = {name: vars(options)[name[2:].replace("-", "_")] for name in _MISPLACED[asked]}
    refuse_misplaced(given, asked)


def _is_config(against):
    return re.fullmatch(r"\S+\.(py|json)(:\S+)?", against) is not None


def _config(path, assignments):
    from ssd_jax import config as configs
    from ssd_jax.config_check import check

    config = configs.load_config(path)
    configs.override(config, assignments)
    check(config)
    return config
