"""Computes the images of many requests together.

A network is compiled for a few batch sizes. Whenever the engine is free, it takes a batch of
waiting images, in the size that is best by its measured speeds. No image waits for others: at low
load each is computed at once, and at high load batches fill by themselves.
"""

import asyncio
import collections
import gc
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ssd_jax.predict import padded
from ssd_jax.serve.detector import ServedDetector
from ssd_jax.serve.telemetry import log
from ssd_jax.types import Detections

# The speed of a batch size is the median of this many times, so that one outlier does not count.
TIMINGS = 3


class Computed(NamedTuple):
    """The detections of one image, and how long they took."""

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
    """Runs a detector on its own thread; call its methods on the thread of the event loop."""

    def __init__(self, detector: ServedDetector, sizes: Sequence[int]):
        self.ready = False
        # Whether the engine computes; it may when `run` has ended, for nothing interrupts a batch.
        self.busy = False
        self._detector = detector
        # The latest times of each batch size, in seconds.
        self._times = {size: collections.deque(maxlen=TIMINGS) for size in sorted(sizes)}
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def run(self) -> None:
        """Compiles and times every batch size, then computes images until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            for size in self._times:
                await loop.run_in_executor(self._thread, self._predict, [], size)  # compiles
                await self._timed([], size)
            # A later garbage collection over all objects of the start-up would stop every thread
            # for so long that a ping would be late.
            gc.collect()
            gc.freeze()
            self.ready = True
            log("ready", batch_seconds={size: round(s, 4) for size, s in self.seconds.items()})
            while True:
                await self._arrived.wait()
                await self._compute_next()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def seconds(self) -> dict[int, float]:
        """The seconds of a batch by its size, for the sizes that are compiled."""
        return {size: statistics.median(times) for size, times in self._times.items() if times}

    async def predict(
        self, canvas: UInt8[np.ndarray, "S S 3"], extent: tuple[int, int]
    ) -> Computed:
        """The detections of a decoded image; it is not computed if the caller is cancelled."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(canvas, extent, time.perf_counter(), answer))
        self._arrived.set()
        return await answer

    def seconds_for(self, pictures: int) -> int:
        """The whole seconds, at least one, that this many images take."""
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
        size = best_size(len(self._waiting), self._times)
        batch = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
        start = time.perf_counter()
        try:
            found = await self._timed(batch, size)
        except Exception as error:  # any error of the engine concerns only these images
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

    async def _timed(self, batch: list[_Waiting], size: int) -> Detections:
        start = time.perf_counter()
        found = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._predict, batch, size
        )
        self._times[size].append(time.perf_counter() - start)
        return found

    def _predict(self, batch: list[_Waiting], size: int) -> Detections:
        self.busy = True
        try:
            pictures = [(picture.canvas, picture.extent) for picture in batch]
            return self._detector.predict(*padded(pictures, size, self._detector.canvas))
        finally:
            self.busy = False


def best_size(waiting: int, times: Mapping[int, Sequence[float]]) -> int:
    """The batch size that gives the most images per second; the smaller one if two are equal.

    `waiting` is the number of waiting images. `times` are the latest seconds of batches of each
    size; a batch that is not full takes as long as a full one. A size that can be filled and has
    fewer than TIMINGS times comes first.
    """
    unknown = [size for size in times if size <= waiting and len(times[size]) < TIMINGS]
    if unknown:
        return max(unknown)
    return max(sorted(times), key=lambda size: min(waiting, size) / statistics.median(times[size]))
