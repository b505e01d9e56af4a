"""Compares a config with another one, or with any command, in the order A, B, B, A, A, B, ..."""

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from ssd_jax.benchmark.clock import compared, take_turns
from ssd_jax.benchmark.workload import (
    Workload,
    evaluate_program,
    predict_program,
    train_program,
)
from ssd_jax.errors import UserError

# What can be compared: the seconds of a training step, an evaluation batch or a single image.
MEASURES = {
    "train": train_program,
    "evaluate": evaluate_program,
    "predict": predict_program,
}


def run_comparison(
    work: Workload,
    other: Workload | str,
    *,
    names: Sequence[str],
    measure: str,
    rounds: int,
    metric: str | None = None,
) -> dict[str, Any]:
    """The ratio of the seconds of `other` to those of `work`, with all measurements.

    `other` may be a shell command. Its seconds are those from start to end, or a number that it
    prints: `metric` is the path of that number, names separated by dots, in the JSON object of its
    last output line.
    """
    first = MEASURES[measure](work).call
    if isinstance(other, str):
        second = _command_seconds(other, metric)
        ours, others = [], []
        for turn in range(rounds):
            turns = [
                lambda: ours.extend(take_turns({"": first}, rounds=1)[""]),
                lambda: others.append(second()),
            ]
            for each in turns[:: -1 if turn % 2 else 1]:
                each()
    else:
        second = MEASURES[measure](other).call
        ours, others = take_turns({"ours": first, "other": second}, rounds=rounds).values()
    return {
        "measure": measure,
        "names": list(names),
        "median_seconds": [statistics.median(ours), statistics.median(others)],
        "seconds": [ours, others],
        **compared(ours, others),
    }


def _command_seconds(command: str, metric: str | None) -> Callable[[], float]:
    def seconds() -> float:
        start = perf_counter()
        ran = subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True, check=False)
        took = perf_counter() - start
        if ran.returncode:
            raise UserError(f"{command}: ended with exit code {ran.returncode}, see above.")
        return took if metric is None else _read_metric(ran.stdout, metric, command)

    return seconds


def _read_metric(output: str, metric: str, command: str) -> float:
    last = (output.strip().splitlines() or [""])[-1]
    try:
        value = json.loads(last)
        for name in metric.split("."):
            value = value[name]
        return float(value)
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{command}: the last line of its output is {last[:200]!r}, expected a JSON object "
            f"with the number {metric}."
        ) from None
