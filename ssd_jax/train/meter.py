"""Means, speed and data wait between two reports."""

from collections.abc import Mapping
from time import perf_counter


class Meter:
    """Collects the values of steps; `read` returns their means and starts again.

    `unread` is the result of `unread()` when the run was stopped, so that its means continue.
    """

    def __init__(self, unread: Mapping[str, float | int] | None = None):
        self.restart()
        self._sums = dict(unread or {})
        self._steps = self._sums.pop("steps", 0)

    def restart(self) -> None:
        """Forgets everything."""
        self._sums: dict[str, float] = {}
        self._steps = self._images = 0
        self._waited = 0.0
        self._start = perf_counter()

    def exclude(self, seconds: float) -> None:
        """Leaves out time that was not spent on training, e.g. that of an evaluation."""
        self._start += seconds

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch."""
        self._waited += seconds

    def add(self, values: dict[str, float], *, images: int) -> None:
        """Adds one step."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1
        self._images += images

    def unread(self) -> dict[str, float | int]:
        """Sums of the values since the last `read`, and the number of `steps` summed."""
        return {**self._sums, "steps": self._steps}

    def read(self) -> dict[str, float]:
        """Means of the values, `images_per_second`, and `data_wait` as a share of the time."""
        elapsed = max(perf_counter() - self._start, 1e-9)
        values = {name: total / self._steps for name, total in self._sums.items()}
        values["images_per_second"] = self._images / elapsed
        values["data_wait"] = self._waited / elapsed
        self.restart()
        return values
