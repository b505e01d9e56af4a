"""Which pictures are computed together."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from painted import PaintedEngine

from ssd_jax.serve.batching import TIMINGS, Batcher, best_size

CANVAS = np.zeros((64, 64, 3), np.uint8)


def times(seconds):
    return {size: [each] * TIMINGS for size, each in seconds.items()}


@pytest.mark.parametrize(
    ("waiting", "size"),
    [(1, 1), (2, 2), (3, 4), (4, 4), (9, 4)],
)
def test_where_batches_cost_little_more_they_are_filled_up(waiting, size):
    assert best_size(waiting, times({1: 0.10, 2: 0.11, 4: 0.12})) == size


@pytest.mark.parametrize("waiting", [1, 3, 4, 9])
def test_where_batches_save_nothing_no_picture_waits_for_another(waiting):
    assert best_size(waiting, times({1: 0.1, 2: 0.2, 4: 0.4})) == 1


def test_one_slow_moment_does_not_decide_against_a_size():
    slow_once = {1: [0.5] * TIMINGS, 4: [2.5]}
    assert best_size(8, slow_once) == 4
    assert best_size(3, slow_once) == 1  # it cannot be filled
    assert best_size(8, times({1: 0.5, 4: 2.5})) == 1


class Gate(PaintedEngine):
    """Computes one batch whenever `open` is released, and notes their sizes."""

    def __init__(self):
        super().__init__()
        self.open = threading.Semaphore(0)
        self.sizes = []

    def predict(self, canvas, extent):
        self.open.acquire()
        self.sizes.append(len(canvas))
        return super().predict(canvas, extent)


async def started(engine, sizes):
    batcher = Batcher(engine, sizes)
    running = asyncio.create_task(batcher.run())
    for _ in range(2 * len(sizes)):  # compiled, and timed
        engine.open.release()
    while not batcher.ready:
        await asyncio.sleep(0.001)
    engine.sizes.clear()
    return batcher, running


def test_it_is_ready_when_every_size_was_computed():
    async def scenario():
        gc.unfreeze()
        engine = Gate()
        batcher = Batcher(engine, [2, 1])
        running = asyncio.create_task(batcher.run())
        for _ in range(4):
            assert not batcher.ready
            engine.open.release()
            await asyncio.sleep(0.002)
        while not batcher.ready:
            await asyncio.sleep(0.002)
        assert engine.sizes == [1, 1, 2, 2]
        assert gc.get_freeze_count() > 0  # no request waits while what the start made is looked at
        running.cancel()

    asyncio.run(scenario())


def test_pictures_that_wait_are_computed_together_and_get_their_own_answers():
    async def scenario():
        engine = Gate()
        batcher, running = await started(engine, [1, 4])
        for size, each in times({1: 0.1, 4: 0.11}).items():
            batcher._times[size].extend(each)
        asked = []
        for red in (10, 20, 30, 40):
            canvas = np.full((64, 64, 3), red, np.uint8)
            asked.append(asyncio.create_task(batcher.predict(canvas, (64, 64))))
            await asyncio.sleep(0.01)
        engine.open.release()
        engine.open.release()
        answers = await asyncio.gather(*asked)
        # The first was alone when it came; three others came while it was computed.
        assert engine.sizes == [1, 4]
        assert [each.batch for each in answers] == [1, 3, 3, 3]
        scores = [each.detections.scores[0] for each in answers]
        np.testing.assert_allclose(scores, np.array([10, 20, 30, 40]) / 255, rtol=1e-6)
        assert answers[1].queue_seconds > 0.02 > answers[0].queue_seconds
        running.cancel()

    asyncio.run(scenario())


def test_a_picture_that_nobody_waits_for_is_not_computed():
    async def scenario():
        engine = Gate()
        batcher, running = await started(engine, [1])
        first = asyncio.create_task(batcher.predict(CANVAS, (64, 64)))
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await batcher.predict(CANVAS, (64, 64))
        engine.open.release()
        await first
        last = asyncio.create_task(batcher.predict(CANVAS, (64, 64)))
        engine.open.release()
        await last
        assert engine.sizes == [1, 1]
        running.cancel()

    asyncio.run(scenario())


def test_a_failure_belongs_to_its_batch_alone():
    async def scenario():
        engine = Gate()
        batcher, running = await started(engine, [1])
        blue = np.full((64, 64, 3), (0, 0, 255), np.uint8)
        engine.open.release()
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.predict(blue, (64, 64))
        engine.open.release()
        assert (await batcher.predict(CANVAS, (64, 64))).batch == 1
        running.cancel()

    asyncio.run(scenario())
