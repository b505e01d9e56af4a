"""Seconds of functions that take turns, so that what else the machine does slows all alike."""

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
    """Seconds a call, one figure of each a round.

    A figure is the mean of as many calls as take `least_seconds`, which are sent one after the
    other and waited for together, on CPUs one by one. Every second round goes backwards. The first
    call, which may compile, is not counted.
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
    # XLA runs programs that do not depend on each other at once on CPUs. Where they communicate,
    # each may then hold a thread that the other waits for, without end.
    wait = jax.block_until_ready if jax.default_backend() == "cpu" else lambda result: result
    start = perf_counter()
    for _ in range(repeats):
        result = wait(call())
    jax.block_until_ready(result)
    return (perf_counter() - start) / repeats


def compared(ours: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """How many times as long the others took: the median over the rounds, and its spread."""
    ratios = [other / own for own, other in zip(ours, others, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "ratios": ratios,
    }
