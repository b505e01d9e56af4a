"""Stopping a run before its last step: on request, or because it no longer improves."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from ssd_jax.cluster import ask_to_stop
from ssd_jax.errors import Stopped
from ssd_jax.sharding import any_process

# Signals that ask a program to stop: of schedulers before they kill it, of Slurm's --signal, and
# of Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Several processes read their common answer this many questions late, so that none waits for it.
LAG = 2
AGAIN = "The training so far is saved; give the same command again to resume."


class Stopping:
    """Knows whether a run was asked to stop: by a signal, or `time_limit` seconds after its start.

    Used as a context manager around a run; it restores the earlier signal handlers at the end.
    Handlers are set only in the main thread, because Python allows it nowhere else, and ignored
    signals stay ignored. A signal before `hold` raises `Stopped`, because there is nothing to save
    yet: at once in a single process, and in several at the next meeting (`cluster.exchange`), on
    all of them. After `hold`, `agreed` reports it. The second Ctrl-C interrupts as usual.
    """

    def __init__(self, time_limit: float | None = None):
        self._deadline = None if time_limit is None else monotonic() + time_limit
        self._signal: str | None = None
        self._held = False
        self._raises = False
        self._before: dict[int, Any] = {}
        self._vote = _Vote(LAG)

    def __enter__(self) -> "Stopping":
        # One of several must not leave alone: the others would wait for it in a meeting.
        self._raises = jax.process_count() == 1
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in list(self._before):
            self._put_back(number)
        ask_to_stop(None)

    def hold(self) -> None:
        """Makes signals wait from here on until the state is saved."""
        self._held, self._raises = True, False
        ask_to_stop(None)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that can be abandoned: a signal raises `Stopped`, also one that was waiting.

        In a run of several processes it stands in a block of `cluster.together`, and has no meeting
        and no collective in it.
        """
        before, self._raises = self._raises, True
        try:
            if self._signal:
                raise self._stopped()
            yield
        finally:
            self._raises = before

    def agreed(self) -> bool:
        """Whether the run stops here; several processes all get the same answer.

        Each of them must ask at the same places. The answer comes a few steps after the request,
        because it is computed between the steps.
        """
        return self._vote(self._requested())

    def between(self, parts: Iterable) -> Iterator:
        """The parts of a longer task, which all processes work through together.

        Raises:
          Stopped: the run was asked to stop; the task is abandoned.
        """
        vote = _Vote(1)  # The latest answer would only come after the part that is running.
        for part in parts:
            if vote(self._requested()):
                raise Stopped(f"stopped by {self.reason} during an evaluation. {AGAIN}")
            yield part

    @property
    def reason(self) -> str:
        """What asked the run to stop."""
        if self._signal:
            return self._signal
        return "the time limit" if self._requested() else "another process"

    def _requested(self) -> bool:
        return bool(self._signal) or (self._deadline is not None and monotonic() >= self._deadline)

    def _note(self, number: int, _frame: object) -> None:
        is_first = self._signal is None
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            self._put_back(number)
        if not self._held:
            ask_to_stop(str(self._stopped()))
        # Another one must not interrupt what the first one has led to.
        if self._raises and is_first:
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(f"stopped by {self._signal} outside of training. {AGAIN}")

    def _put_back(self, number: int) -> None:
        before = self._before.pop(number)
        # None: the handler was not set from Python and cannot be restored.
        signal.signal(number, signal.SIG_DFL if before is None else before)


class _Vote:
    """Whether any process says yes, answered `lag` questions late so that none waits for it."""

    def __init__(self, lag: int):
        self._lag = lag
        self._asked: deque[jax.Array] = deque()

    def __call__(self, yes: bool) -> bool:
        """Asks once more; a single process gets its own answer."""
        if jax.process_count() == 1:
            return yes
        self._asked.append(any_process(yes))
        return len(self._asked) > self._lag and _read(self._asked.popleft())


def _read(answer: jax.Array) -> bool:
    return bool(jax.device_get(answer))


class Progress(NamedTuple):
    """The state of a run outside its arrays; checkpoints hold it as JSON.

    `best` is the metric of the last evaluation that early stopping counts as an improvement, and
    `without_improvement` the number of evaluations since. `unread` has the sums of the steps that
    no line of metrics.jsonl includes yet.
    """

    evaluated_step: int = 0
    best: float = 0.0
    without_improvement: int = 0
    unread: Mapping[str, float | int] = MappingProxyType({})


class EarlyStopping(NamedTuple):
    """Stops a run whose metric has not improved for `patience` evaluations.

    The metric has improved if it exceeds the best by more than `tolerance` times the best. All
    evaluations count, but none before `minimum_step` stops the run.
    """

    metric: str
    patience: int
    tolerance: float
    minimum_step: int

    def note(self, progress: Progress, measured: dict[str, float | None]) -> Progress:
        """The progress after an evaluation."""
        value = measured[self.metric]
        if value - progress.best > self.tolerance * progress.best:
            return progress._replace(best=value, without_improvement=0)
        return progress._replace(without_improvement=progress.without_improvement + 1)

    def reached(self, progress: Progress) -> bool:
        """Whether the run ends after the last evaluation of `progress`."""
        return (
            progress.evaluated_step >= self.minimum_step
            and progress.without_improvement >= self.patience
        )
