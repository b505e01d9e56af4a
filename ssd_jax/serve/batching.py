"""Pictures of many requests, computed together.

A network is compiled for a few batch sizes. Whenever the engine is free, it takes of what waits the
batch that its measured speed makes best. Nothing waits for company: at low load each picture is
computed at once, and at high load batches fill by themselves.
"""

import asyncio
import collections
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ssd_jax.serve.engine import Engine
from ssd_jax.serve.telemetry import log
from ssd_jax.types import Detections

TIMINGS = 3
ENOUGH_SECONDS = 0.2


class Computed(NamedTuple):
    """The detections of one picture, and how long they took."""

    detections: Detections
    batch: int
    queue_seconds: float
    predict_seconds: float


class _Waiting(NamedTuple):
    canvas: UInt8[np.ndarray, "S S 3"]
    extent: tuple[int, int]
    since: float
    answer: asyncio.Future


class Batcher:
    """Runs an engine on its own thread; all methods belong to the thread of the event loop."""

    def __init__(self, engine: Engine, sizes: Sequence[int]):
        self.ready = False
        self.seconds: dict[int, float] = {}
        self._engine = engine
        self._sizes = sorted(sizes)
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def run(self) -> None:
        """Compiles and times every batch size, then computes what comes, until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            for size in self._sizes:
                self.seconds[size] = await loop.run_in_executor(self._thread, self._warm_up, size)
            self.ready = True
            log("ready", batch_seconds={size: round(s, 4) for size, s in self.seconds.items()})
            while True:
                await self._arrived.wait()
                await self._compute_next()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def predict(
        self, canvas: UInt8[np.ndarray, "S S 3"], extent: tuple[int, int]
    ) -> Computed:
        """The detections of a decoded picture. One whose caller is cancelled is not computed."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(canvas, extent, time.perf_counter(), answer))
        self._arrived.set()
        return await answer

    def seconds_for(self, pictures: int) -> int:
        """Whole seconds, one at least, that so many pictures take."""
        best = min((each / size for size, each in self.seconds.items()), default=1.0)
        return max(1, math.ceil(pictures * best))

    async def _compute_next(self) -> None:
        for _ in range(len(self._waiting)):
            picture = self._waiting.popleft()
            if not picture.answer.done():
                self._waiting.append(picture)
        if not self._waiting:
            self._arrived.clear()
            return
        size = best_size(len(self._waiting), self.seconds)
        batch = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
        start = time.perf_counter()
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._predict, batch, size
            )
        except Exception as error:  # whatever the engine raises belongs to these pictures alone
            for picture in batch:
                if not picture.answer.done():
                    picture.answer.set_exception(error)
            return
        seconds = time.perf_counter() - start
        for row, picture in enumerate(batch):
            if not picture.answer.done():
                detections = Detections(*(each[row] for each in found))
                picture.answer.set_result(
                    Computed(detections, len(batch), start - picture.since, seconds)
                )

    def _predict(self, batch: list[_Waiting], size: int) -> Detections:
        side = self._engine.canvas
        canvas = np.zeros((size, side, side, 3), np.uint8)
        extent = np.full((size, 2), side, np.int32)
        for row, picture in enumerate(batch):
            canvas[row], extent[row] = picture.canvas, picture.extent
        return self._engine.predict(canvas, extent)

    def _warm_up(self, size: int) -> float:
        """Seconds of a batch, once it is compiled; short times are the best of a few."""
        self._predict([], size)
        seconds = []
        while len(seconds) < TIMINGS and sum(seconds) < ENOUGH_SECONDS:
            start = time.perf_counter()
            self._predict([], size)
            seconds.append(time.perf_counter() - start)
        return min(seconds)


def best_size(waiting: int, seconds: dict[int, float]) -> int:
    """The batch size that gives the most pictures a second of `waiting` ones; the smallest of two.

    `seconds` are those of a batch by its size; a batch that is not full costs as much as a full
    one.
    """
    return max(sorted(seconds), key=lambda size: min(waiting, size) / seconds[size])
