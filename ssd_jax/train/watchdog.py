"""Ends a process in which something takes far too long, and reports where it hung."""

import contextlib
import faulthandler
import os
import pathlib
import socket
import statistics
import sys
import threading
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from time import monotonic

import jax

from ssd_jax.cluster import leave
from ssd_jax.errors import Stopped, UserError

# EX_SOFTWARE of BSD's sysexits.h: an internal error, worth another try.
EXIT_STALLED = 70
# Fewer durations than this say nothing, because the first ones include compilation.
ENOUGH = 3


class Watchdog:
    """Watches the phases of a run; each `enter` begins the next one.

    A phase may take `factor` times the median of the earlier ones of its name, and at least
    `minimum_seconds`; the first ones, which compile, may take `first_seconds`. After that the
    stacks of all threads and the state of the run go to stderr and to a file in `folder`, and the
    process ends with code 70. Nothing is watched before the first phase; `factor` 0 watches
    nothing. `last_words` is called with the error before the watchdog ends a process.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        factor: float,
        minimum_seconds: float,
        first_seconds: float,
        last_words: Callable[[Exception], object] = lambda error: None,
    ):
        self._folder = folder
        self._factor = factor
        self._minimum_seconds = minimum_seconds
        self._first_seconds = first_seconds
        self._last_words = last_words
        self._durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=101))
        # Phase, step, and when it began; one tuple, because two threads read it.
        self._now: tuple[str | None, int, float] = (None, 0, monotonic())
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.mesh: jax.sharding.Mesh | None = None

    def __enter__(self) -> "Watchdog":
        if self._factor:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        """A block in which an error of one of several processes is printed and ends it at once.

        An ordinary exit would wait for the others, e.g. to finish a checkpoint, while they wait for
        this process.
        """
        try:
            yield
        except Stopped:
            raise
        except (UserError, OSError) as error:
            if jax.process_count() == 1:
                raise
            print(f"{_who()}: error: {error}", file=sys.stderr)
            self._last_words(error)
            leave(2)
        except Exception as error:
            if jax.process_count() == 1:
                raise
            self._tell(traceback.format_exc(), error)
            leave(EXIT_STALLED if _may_be_of_another(error) else 1)

    def enter(self, phase: str, step: int | None = None) -> None:
        """Begins a phase and ends the one before."""
        before, last_step, began = self._now
        self._now = (phase, last_step if step is None else step, monotonic())
        if before is not None:
            self._durations[before].append(self._now[2] - began)

    def limit(self, phase: str) -> float:
        """The seconds that a phase of this name may take now."""
        before = list(self._durations[phase])
        if len(before) < ENOUGH:
            return self._first_seconds
        return max(self._minimum_seconds, self._factor * statistics.median(before))

    def _watch(self) -> None:
        pause = min(1.0, self._minimum_seconds / 4)
        seen, waited, last = self._now, 0.0, monotonic()
        while not self._closed.wait(pause):
            now = monotonic()
            if self._now is not seen:
                seen, waited = self._now, 0.0
            # A longer pause means that the whole process was suspended meanwhile.
            waited += min(now - last, 2 * pause)
            last = now
            phase = seen[0]
            if phase is not None and waited > self.limit(phase):
                problem = f"{phase}: not done after {waited:.0f} s"
                self._tell(problem, RuntimeError(problem))
                os._exit(EXIT_STALLED)

    def _tell(self, problem: str, error: Exception) -> None:
        devices = self.mesh.devices.flat if self.mesh else ()
        phase, step, _ = self._now
        before = {name: _rounded(seconds) for name, seconds in dict(self._durations).items()}
        text = (
            f"\n{_who()} stops: {problem}\n"
            f"step {step}, phase {phase}; seconds of the latest ones: {before}\n"
            f"mesh: {', '.join(f'{device} (process {device.process_index})' for device in devices)}"
        )
        _write(2, text)
        # Written by a thread, because it may be the disk that hangs.
        file = self._folder / f"stalled_process_{jax.process_index()}.txt"
        for last in (lambda: _write(file, text), lambda: self._last_words(error)):
            writer = threading.Thread(target=last, daemon=True)
            writer.start()
            writer.join(timeout=10)


def _may_be_of_another(error: Exception) -> bool:
    """Whether the loss of another process may be the cause; then a second try may succeed."""
    return isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)


def _write(file: int | pathlib.Path, text: str) -> None:
    with (
        contextlib.suppress(OSError),
        open(file, "a", encoding="utf-8", closefd=file != 2) as opened,
    ):
        print(text, file=opened, flush=True)
        faulthandler.dump_traceback(opened, all_threads=True)


def _who() -> str:
    return (
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()} "
        f"(pid {os.getpid()})"
    )


def _rounded(durations: deque[float]) -> list[float]:
    return [round(seconds, 3) for seconds in list(durations)[-5:]]
