"""The training loop: evaluate, save, get a batch, step, report; the rest is in other files."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import jax

from ssd_jax.errors import Stopped
from ssd_jax.runs.log import DIVERGED, Reporter, memory_in_use
from ssd_jax.train.hooks import Metrics
from ssd_jax.train.meter import Meter
from ssd_jax.train.state import TrainState
from ssd_jax.train.stopping import AGAIN, EarlyStopping, Progress, Stopping
from ssd_jax.train.watchdog import Watchdog
from ssd_jax.types import Batch

# Metrics are read this many steps late, so the host never waits for the step it has just launched.
LAG = 2


def train(
    state: TrainState,
    program: Callable[[int], Callable[[TrainState, Batch], tuple[TrainState, Metrics]]],
    batches: Iterator[tuple[Sequence[str], Batch]],
    *,
    progress: Progress,
    total_steps: int,
    evaluate: Callable[[TrainState], tuple[dict[str, float], dict[str, float]]],
    save: Callable[[TrainState, dict[str, float] | None, Progress], None],
    diverged: Callable[[int, Sequence[str], dict[str, float], TrainState], Exception],
    reporter: Reporter,
    stopping: Stopping,
    watchdog: Watchdog,
    early_stopping: EarlyStopping | None,
    evaluate_every: int | float | None,
    save_every: int | None,
    log_every: int,
) -> TrainState:
    """Runs from `state.step` to `total_steps`, or until `early_stopping` ends the run.

    `program(step)` is the function that computes that step. The last state is evaluated and saved.
    `batches` yields (names of the samples, batch on the mesh) and must start at the batch of
    `state.step`, because the data position is the step. `state` is donated to the first step.
    `evaluate` returns the metrics and its speed; `evaluate_every`, in steps, need not be a whole
    number. `save` gets the metrics of the same state, or None, and replaces an earlier checkpoint
    of the same step. If a value of a step is not finite, `diverged` makes the exception from the
    step's number, samples and values and from the newest state.

    Raises:
      Stopped: the run was asked to stop; the state is saved. An interrupted evaluation is repeated
        when the run is resumed.
      Exception: that of `diverged`; the steps since the last report are written one by one.
    """
    start = int(jax.device_get(state.step))
    meter = Meter(progress.unread)
    sent: deque[tuple[int, Sequence[str], Metrics]] = deque()
    unreported: list[tuple[int, dict[str, float]]] = []

    def report(in_flight: int) -> None:
        while len(sent) > in_flight:
            step, names, metrics = sent.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            unreported.append((step, values))
            if not all(map(math.isfinite, values.values())):
                for each, its_values in unreported:
                    reporter.write(each, DIVERGED, its_values)
                raise diverged(step, names, values, state)
            meter.add(values, images=len(names) * jax.process_count())
            reporter.advance(step)
            if _due(log_every, step) or step == total_steps:
                reporter.write(step, "train", meter.read() | memory_in_use())
                unreported.clear()

    for step in range(start, total_steps + 1):
        # The order matters: the saved state is the one just before the next batch.
        asked_to_stop = stopping.agreed()
        finished = step == total_steps
        evaluating = (finished or _due(evaluate_every, step)) and step > progress.evaluated_step
        if evaluating or asked_to_stop or (step > start and _due(save_every, step)):
            report(in_flight=0)
            paused_since = perf_counter()
            measured = None
            if evaluating and not asked_to_stop:
                watchdog.enter("evaluation", step)
                try:
                    measured, speed = evaluate(state)
                except Stopped:
                    asked_to_stop = True
                else:
                    reporter.write(step, "val", measured | speed)
                    progress = progress._replace(evaluated_step=step)
                    if early_stopping:
                        progress = early_stopping.note(progress, measured)
            watchdog.enter("saving", step)
            if step > start or measured:
                save(state, measured, progress._replace(unread=meter.unread()))
            meter.exclude(perf_counter() - paused_since)
        if asked_to_stop:
            raise Stopped(f"stopped by {stopping.reason} at step {step} of {total_steps}. {AGAIN}")
        if finished or (early_stopping and early_stopping.reached(progress)):
            break

        watchdog.enter("batch", step)
        waiting_since = perf_counter()
        names, batch = next(batches)
        meter.waited(perf_counter() - waiting_since)
        watchdog.enter("step", step)
        with jax.transfer_guard("disallow"):
            state, metrics = program(step)(state, batch)
        sent.append((step + 1, names, metrics))
        report(in_flight=LAG)
    return state


def _due(every: int | float | None, step: int) -> bool:
    """Whether `step` is nearest to a multiple of `every`, which need not be a whole number."""
    # Multiples of a fraction of an epoch are not exact: 13.4999... means 13.5, which rounds to 14.
    return every is not None and step == round(round(round(step / every) * every, 6))
