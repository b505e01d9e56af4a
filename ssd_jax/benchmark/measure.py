"""Measures a config on this machine, compared with what the machine can do."""

import itertools
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import jax

from ssd_jax.benchmark.clock import compared, take_turns
from ssd_jax.benchmark.machine import Machine, describe_machine, measure_machine
from ssd_jax.benchmark.parts import part_programs
from ssd_jax.benchmark.roofline import grouped, layer_of, operations, roofline_seconds, traffic
from ssd_jax.benchmark.workload import (
    Program,
    Workload,
    bare_program,
    evaluate_program,
    forward_program,
    predict_program,
    train_program,
)
from ssd_jax.runs.log import memory_in_use
from ssd_jax.runs.training_data import mesh_batches

# Batches that the threads of the input prepare ahead.
_AHEAD = 16
# The loop that waits for them takes about this many seconds, but at most this many steps.
_LOOP_SECONDS, _MOST_STEPS = 2.0, 50
_SLOWEST_LAYERS = 12


def measure(work: Workload, *, rounds: int, profile: pathlib.Path | None = None) -> dict[str, Any]:
    """All figures of a config except for its start; seconds, bytes, and fractions from 0 to 1.

    Figures of a program are for all devices together, except for memory, which is per device.
    `profile` is a folder for a trace.
    """
    machine = measure_machine(work.mesh, dtype=work.config.model.dtype)
    whole = {
        "train": train_program(work),
        "bare_train": bare_program(work),
        "evaluate": evaluate_program(work),
        "forward": forward_program(work),
        "predict": predict_program(work),
    }
    parts = part_programs(work)
    calls = {name: program.call for name, program in (whole | parts).items()}
    seconds = take_turns(calls, rounds=rounds)
    # Measured twice, because other work may have slowed one, and fractions could exceed 1.
    again = measure_machine(work.mesh, dtype=work.config.model.dtype)
    machine = Machine(*map(max, machine, again))
    train = whole["train"]
    result = {
        "machine": describe_machine(work.mesh)
        | {"matmul_operations_per_second": machine.matmul, "bytes_per_second": machine.bandwidth},
        "batch_size": train.images,
        "anchors": len(work.network.anchors),
        "programs": {
            name: _figures(
                program, seconds[name], machine, 1 if name == "predict" else work.mesh.size
            )
            for name, program in whole.items()
        },
        "against_bare": {
            "train": compared(seconds["bare_train"], seconds["train"]),
            "evaluate": compared(seconds["forward"], seconds["evaluate"]),
        },
        "shares": _shares(seconds, parts),
        "input": _input(work, train, seconds["train"]),
        "layers": _layers(train, machine),
        "memory": memory_in_use(),
    }
    if profile is not None:
        _trace(profile, train, whole["evaluate"])
    return result


def _figures(
    program: Program, seconds: Sequence[float], machine: Machine, devices: int
) -> dict[str, float]:
    median = statistics.median(seconds)
    least = roofline_seconds(program.kernels, peak=machine.matmul, bandwidth=machine.bandwidth)
    done = operations(program.kernels) / median
    moved = traffic(program.kernels) / median
    return {
        "seconds": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "images_per_second": program.images / median,
        "operations_per_second": done * devices,
        "bytes_per_second": moved * devices,
        "of_matmul_peak": done / machine.matmul,
        "of_bandwidth": moved / machine.bandwidth,
        "roofline_seconds": least,
        "of_roofline": least / median,
        "compile_seconds": program.compile_seconds,
        "memory_bytes": program.memory.total,
    }


def _shares(seconds: Mapping[str, Sequence[float]], parts: Iterable[str]) -> dict[str, float]:
    """Each part, measured alone, as a fraction of a training step; the network is the bare step."""
    alone = {name: statistics.median(seconds[name]) for name in (*parts, "bare_train", "train")}
    step = alone.pop("train")
    alone["network"] = max(alone.pop("bare_train") - alone["optimizer"], 0.0)
    alone["loss"] = max(alone["loss"] - alone["match"] - alone.get("mine", 0.0), 0.0)
    return {name: each / step for name, each in alone.items()}


def _input(work: Workload, train: Program, step_seconds: Sequence[float]) -> dict[str, float]:
    """Seconds per batch of the input alone, and the fraction of a loop spent waiting for it."""
    with_names = mesh_batches(work.config, work.source, work.mesh, start_step=0)
    try:
        for _ in itertools.islice(with_names, _AHEAD):
            pass
        counted = _AHEAD
        start = perf_counter()
        for _, batch in itertools.islice(with_names, counted):
            jax.block_until_ready(batch)
        alone = (perf_counter() - start) / counted
        waited, start = 0.0, perf_counter()
        steps = int(_LOOP_SECONDS / statistics.median(step_seconds))
        for _ in range(min(max(steps, 4), _MOST_STEPS)):
            before = perf_counter()
            next(with_names)
            waited += perf_counter() - before
            jax.block_until_ready(train.call())
        return {"seconds": alone, "data_wait": waited / (perf_counter() - start)}
    finally:
        with_names.close()


def _layers(train: Program, machine: Machine) -> list[dict[str, Any]]:
    """The layers and stages that take the largest shares of a step's roofline."""
    bounds = {"peak": machine.matmul, "bandwidth": machine.bandwidth}
    total = roofline_seconds(train.kernels, **bounds)
    rows = [
        {
            "layer": layer,
            "share": roofline_seconds(kernels, **bounds) / total,
            "operations": operations(kernels),
            "bytes": traffic(kernels),
        }
        for layer, kernels in grouped(train.kernels, layer_of).items()
    ]
    return sorted(rows, key=lambda row: -row["share"])[:_SLOWEST_LAYERS]


def _trace(folder: pathlib.Path, train: Program, evaluate: Program) -> None:
    """Writes a trace for TensorBoard and, as perfetto_trace.json.gz, for ui.perfetto.dev."""
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for step in range(3):
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                jax.block_until_ready(train.call())
        with jax.profiler.TraceAnnotation("evaluate"):
            evaluate.call()
