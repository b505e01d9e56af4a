"""The log of a run: JSON lines, TensorBoard events and a progress bar.

Numbers that are not finite are written as null, which every JSON reader understands.
"""

import json
import os
import pathlib
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssd_jax.errors import UserError
from ssd_jax.files import json_line, to_json, write_text

METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.json"
EVALUATION_FILE = "evaluation.json"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = "checkpoints"
PICTURES_FOLDER = "pictures"
# The split that lists the last steps before a run diverged; a resumed run removes these lines.
DIVERGED = "diverged"

# TensorBoard sees the numbers after so long at the latest; waiting for the disk takes time.
_EVENTS_SECONDS = 30.0

# Called with step, split and values.
Observer = Callable[[int, str, Mapping[str, Any]], None]


class Reporter:
    """Reports a run of `total_steps` steps, begun or resumed at `start_step`.

    Used as a context manager. A resumed run removes the records that the stopped one had written
    after `start_step`, so that the files read as one unbroken run; one that starts at step 0
    removes all. With `active=False`, for all processes but the first, nothing is written.

    On a terminal the progress is a bar; elsewhere it is a line every `line_seconds` seconds. Each
    of `observers` is called with what `write` has written. An epoch has `steps_per_epoch` steps,
    which need not be a whole number.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        total_steps: int,
        start_step: int = 0,
        steps_per_epoch: float | None = None,
        active: bool = True,
        line_seconds: float = 10.0,
        observers: Sequence[Observer] = (),
    ):
        self._workdir = pathlib.Path(workdir)
        self._total_steps = total_steps
        self._start_step = start_step
        self._steps_per_epoch = steps_per_epoch
        self._active = active
        self._line_seconds = line_seconds
        self._observers = observers

    def __enter__(self):
        if self._active:
            self._workdir.mkdir(parents=True, exist_ok=True)
            path = self._workdir / METRICS_FILE
            _drop_lines_after(path, self._start_step)
            self._lines = path.open("a", encoding="utf-8")
            self._events = _Events(self._workdir / TENSORBOARD_FOLDER, self._start_step)
            progress = _Bar if sys.stderr.isatty() else _PlainLines
            self._progress = progress(self._start_step, self._total_steps, self._line_seconds)
        return self

    def __exit__(self, *exception):
        if self._active:
            with self._lines:
                self._progress.close()
                self._events.close()

    def advance(self, step: int) -> None:
        """Move the progress to `step`, the number of steps done; cheap enough for every step."""
        if self._active:
            self._progress.advance(step)

    def write(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Record named values after `step` steps, with the epoch and the time (Unix, seconds).

        For the split "train", the progress shows `loss`, `lr`, `images_per_second` and `data_wait`
        (the share of the time spent waiting for data, 0 to 1). For any other split except DIVERGED
        the values are printed, without those whose name has a slash (details such as "ap/dog").
        """
        if not self._active:
            return
        values = to_json(values)
        when = {"time": round(time.time(), 3)}
        if self._steps_per_epoch:
            when["epoch"] = round(step / self._steps_per_epoch, 6)
        self._lines.write(json_line({"step": step, "split": split, **when, **values}))
        self._lines.flush()
        self._events.write(step, split, values)
        if split == "train":
            self._progress.show(step, _training_summary(values))
        elif split != DIVERGED:
            shown = [f"{name} {_short(v)}" for name, v in values.items() if "/" not in name]
            self._progress.print("  ".join([f"step {step}", split, *shown]))
        for observer in self._observers:
            observer(step, split, when | values)


class _Events:
    """A file for TensorBoard.

    `SummaryWriter` writes in a thread, which ends when the disk is full and then blocks the run.
    """

    def __init__(self, folder, start_step):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        # Two files started in the same second would otherwise have the same name.
        self._writer = EventsWriter(str(folder / "events"), f".from-{start_step}")
        # TensorBoard hides what earlier files say about this step and later ones.
        first = start_step + 1 if start_step else 0
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first, session_log=start))
        self._flushed = time.time()

    def write(self, step, split, values):
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        now = time.time()
        for name, value in values.items():
            if isinstance(value, int | float):
                summary = scalar(f"{split}/{name}", value)
                self._writer.write_event(Event(wall_time=now, step=step, summary=summary))
        if abs(now - self._flushed) > _EVENTS_SECONDS:
            self._writer.flush()
            self._flushed = now

    def close(self):
        self._writer.close()


def memory_in_use() -> dict[str, float]:
    """Peak memory so far, in GiB: of this process, and of a device if it reports its peak."""
    import jax

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = {"host_memory_gib": peak / (2**30 if sys.platform == "darwin" else 2**20)}
    counted = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in counted:
        used["device_memory_gib"] = counted["peak_bytes_in_use"] / 2**30
    return used


class _Bar:
    """Progress on a terminal."""

    def __init__(self, start_step, total_steps, _line_seconds):
        from tqdm import tqdm

        columns, rows = shutil.get_terminal_size()
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            file=sys.stderr,
            # A pseudo-terminal may report a size of 0 by 0, for which tqdm would show nothing.
            ncols=columns,
            nrows=rows,
            bar_format="step {n_fmt}/{total_fmt} |{bar}| ETA {remaining}  {desc}",
        )

    def advance(self, step):
        self._bar.update(step - self._bar.n)

    def show(self, step, summary):
        self._bar.set_description_str(summary, refresh=False)
        self.advance(step)

    def print(self, line):
        self._bar.write(line, file=sys.stderr)

    def close(self):
        self._bar.close()


class _PlainLines:
    """Progress in a log file: a line every few seconds, and for the first and the last step."""

    def __init__(self, start_step, total_steps, line_seconds):
        self._total_steps = total_steps
        self._line_seconds = line_seconds
        self._last_step, self._last_time = start_step, time.monotonic()
        self._first = True

    def advance(self, step):
        pass

    def show(self, step, summary):
        now = time.monotonic()
        elapsed = now - self._last_time
        if not (self._first or step >= self._total_steps or elapsed >= self._line_seconds):
            return
        line = f"step {step}/{self._total_steps}  {summary}"
        # The first steps are mostly compilation, so they do not predict the time left.
        if not self._first and self._last_step < step < self._total_steps:
            left = (self._total_steps - step) * elapsed / (step - self._last_step)
            line += f"  ETA {_clock(left)}"
        self.print(line)
        self._first, self._last_step, self._last_time = False, step, now

    def print(self, line):
        print(line, file=sys.stderr, flush=True)

    def close(self):
        pass


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line that is still being written is left out."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the {METRICS_FILE} of a training run")
    records = []
    # As bytes: the last line may end in the middle of a letter.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}:{number}: got {line[:80].decode(errors='replace')!r}; expected one JSON "
                "object per line. Remove the line or the file"
            ) from error
    return records


def _drop_lines_after(path, step):
    if not path.exists():
        return
    records = read_metrics(path) if step else []
    kept = [each for each in records if each["step"] <= step and each["split"] != DIVERGED]
    write_text(path, "".join(map(json_line, kept)))


def _training_summary(values):
    formats = {
        "loss": lambda value: f"loss {_short(value)}",
        "lr": lambda value: f"lr {_short(value)}",
        "images_per_second": lambda value: f"{_short(value)} images/s",
        "data_wait": lambda value: f"data wait {value:.0%}",
    }
    known = {name: values[name] for name in formats if values.get(name) is not None}
    return "  ".join(formats[name](value) for name, value in known.items())


def _short(value):
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
