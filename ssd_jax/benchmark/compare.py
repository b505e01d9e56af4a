"""A config beside another one, or beside any command: A, B, B, A, A, B and so on."""

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

# What can be compared: seconds of a training step, of a batch of evaluation, of one picture.
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
    """How many times as long `other` takes as `work`.

    `other` may be a shell command. Of that it is the time from start to end, or the number that it
    prints: the `metric`, names with dots between them, of the JSON object in the last line of its
    output.
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
            raise UserError(f"{command}: it ended with exit code {ran.returncode}, see above.")
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
            f"{command}: its last line of output is {last[:200]!r}, expected a JSON object with "
            f"the number {metric}."
        ) from None
