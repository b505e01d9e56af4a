"""The laws of the pipeline: the step is the position, on any number of processes and threads."""

import itertools
import threading

import cv2
import grain
import numpy as np
import pytest

from ssd_jax.data import pipeline
from ssd_jax.data.sources.base import Annotations, Problems, Source
from ssd_jax.errors import DataError, UserError
from ssd_jax.types import Batch


class TinySource(Source):
    """Ten grey images of 4 x 6 pixels; image i has the grey value i and i % 3 objects."""

    def __init__(self, damaged=()):
        counts = np.arange(10) % 3
        offsets = np.concatenate([[0], np.cumsum(counts)])
        annotations = Annotations(
            names=tuple(f"image {index}" for index in range(10)),
            sizes=np.tile([4, 6], (10, 1)),
            offsets=offsets,
            boxes=np.tile(np.array([0, 0, 1, 1], np.float32), (offsets[-1], 1)),
            labels=np.zeros(offsets[-1], np.int32),
            difficult=np.zeros(offsets[-1], bool),
        )
        super().__init__(
            annotations,
            ("thing",),
            read_image=self._read,
            locate=annotations.names.__getitem__,
            problems=Problems(),
        )
        self.damaged = damaged
        self.reads = 0

    def _read(self, index):
        self.reads += 1
        image = cv2.imencode(".png", np.full((4, 6, 3), index, np.uint8))[1].tobytes()
        return image[:-20] if index in self.damaged else image


OPTIONS = {"canvas": 8, "max_objects": 2}


def take(batches, count):
    """The first batches of an iterator, which is then closed."""
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def train(count, source=None, **options):
    options = {"batch_size": 4, "seed": 5, **OPTIONS, **options}
    return take(pipeline.train_batches(source or TinySource(), **options), count)


def evaluation(source=None, **options):
    options = {"batch_size": 4, **OPTIONS, **options}
    return take(pipeline.evaluation_batches(source or TinySource(), **options), None)


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for field, value in batch._asdict().items():
            np.testing.assert_array_equal(value, getattr(other, field), err_msg=field)


def joined(parts):
    """The global batch from the shares of the processes, in their order."""
    return Batch(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def ids(batches):
    return np.concatenate([batch.sample_id for batch in batches]).tolist()


@pytest.fixture(scope="module")
def unbroken():
    return train(10)


def test_rows_belong_together(unbroken):
    for batch in unbroken:
        np.testing.assert_array_equal(batch.canvas[:, 0, 0, 0], batch.sample_id)
        np.testing.assert_array_equal(batch.valid.sum(axis=1), batch.sample_id % 3)
        assert batch.canvas.shape == (4, 8, 8, 3)
        assert batch.real.all()


def test_each_epoch_is_another_order_of_all_images(unbroken):
    epochs = np.reshape(ids(unbroken), (4, 10))
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_seed_decides_the_order(unbroken):
    assert ids(train(3)) == ids(unbroken[:3])
    assert ids(train(3, seed=6)) != ids(unbroken[:3])


@pytest.mark.parametrize("step", [1, 7])
def test_resume_is_the_unbroken_run(unbroken, step):
    assert_same(train(10 - step, start_step=step), unbroken[step:])


def test_all_threads_work_at_the_same_time():
    together = threading.Barrier(12, timeout=10)
    batches = grain.MapDataset.range(24).map(lambda number: (together.wait(), number)[1])
    assert list(pipeline._iterate(batches, num_threads=12)) == list(range(24))


@pytest.mark.parametrize(
    "options", [{"num_threads": 0}, {"num_threads": 3}, {"keep_decoded": True}]
)
def test_threads_and_cache_change_nothing(unbroken, options):
    assert_same(train(10, **options), unbroken)


@pytest.mark.parametrize("count", [2, 4])
def test_shares_of_the_processes_make_up_the_global_batch(unbroken, count):
    shares = [train(10, process_index=index, process_count=count) for index in range(count)]
    assert_same([joined(parts) for parts in zip(*shares, strict=True)], unbroken)
    shares = [evaluation(process_index=index, process_count=count) for index in range(count)]
    assert_same([joined(parts) for parts in zip(*shares, strict=True)], evaluation())


def test_evaluation_sees_every_image_once_in_order():
    batches = evaluation()
    real = np.concatenate([batch.real for batch in batches])
    assert real.tolist() == [True] * 10 + [False] * 2
    assert np.array(ids(batches))[real].tolist() == list(range(10))
    assert not batches[-1].valid[2:].any()
    assert (batches[-1].extent[2:] == 1).all()  # which one can divide by
    assert (batches[-1].size[2:] == 1).all()


def test_cache_reads_every_image_once():
    source = TinySource()
    train(10, source, keep_decoded=True, num_threads=0)
    assert source.reads == 10
    assert pipeline.cache_bytes(source, canvas=8) == 10 * 8 * 8 * 3


def test_max_objects_is_measured():
    assert pipeline.max_objects(TinySource()) == 2
    assert pipeline.max_objects(TinySource().take([0, 3])) == 1  # neither shows an object


@pytest.mark.parametrize("threads", [0, 2])
def test_damaged_record_reaches_the_consumer(threads):
    batches = pipeline.evaluation_batches(
        TinySource(damaged=(5,)), batch_size=4, num_threads=threads, **OPTIONS
    )
    next(batches)
    with pytest.raises(DataError, match="SSD112 image 5: the PNG file ends early"):
        next(batches)
    batches.close()


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="batch_size is 4: expected a multiple of the 3 processes"):
        train(1, process_count=3)
