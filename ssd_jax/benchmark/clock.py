"""Times functions in turns, so that other work on the machine slows all of them alike."""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from time import perf_counter
from typing import Any

import jax

_MOST_REPEATS = 1000


def take_turns(
    calls: Mapping[Hashable, Callable[[], Any]], *, rounds: int, least_seconds: float = 0.2
) -> dict[Hashable, list[float]]:
    """The seconds per call of each function, one figure per round.

    A figure is the mean of as many calls as take `least_seconds`. They are launched one after the
    other and waited for together, on CPUs one by one. Every second round is in reverse order. The
    first call, which may compile, is not counted.
    """
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        wanted = math.ceil(least_seconds / max(_seconds(call, 1), 1e-9))
        repeats[name] = min(wanted, _MOST_REPEATS)
    seconds = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            seconds[name].append(_seconds(calls[name], repeats[name]))
    return seconds


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    # On CPUs XLA runs independent programs at the same time. If they communicate, each may hold a
    # thread that the other waits for, which is a deadlock.
    wait = jax.block_until_ready if jax.default_backend() == "cpu" else lambda result: result
    start = perf_counter()
    for _ in range(repeats):
        result = wait(call())
    jax.block_until_ready(result)
    return (perf_counter() - start) / repeats


def compared(ours: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """The ratio of the others' seconds to ours: the median over the rounds, and its spread."""
    ratios = [other / own for own, other in zip(ours, others, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "ratios": ratios,
    }
