"""Sources to host batches, with Grain: the step alone determines the position in the data.

The indices of global batches are computed first; each process then decodes its consecutive share.
So the batch of a step, with its rows in order, is the same for any number of processes and threads,
and a resumed run needs no state except its step.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Int

from ssd_jax.data.decode import decode_example, decode_into, empty_rows
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.types import Batch

# The number of batches that are built ahead.
PREFETCHED = 8


def max_objects(source: Source) -> int:
    """The padded number of objects G that the source needs, at least 1."""
    return int(source.object_counts.max(initial=1))


def cache_bytes(source: Source, *, canvas: int) -> int:
    """The memory that the decoded images will take, in bytes.

    It is needed in each process for a cache in RAM, and in all devices together for a cache there.
    """
    return len(source) * canvas * canvas * 3


def train_positions(num_images: int, *, batch_size: int, seed: int, start_step: int = 0):
    """A Grain data set of the images of each global batch: endless, a new order each epoch."""
    import grain

    order = grain.MapDataset.range(num_images).shuffle(seed=seed).repeat()
    return order.batch(batch_size)[start_step:]


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    canvas: int,
    max_objects: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    keep_decoded: bool = False,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on, in a new global order each epoch.

    `batch_size` is global; this process gets its rows of every batch. An epoch may end inside a
    batch. `num_threads` (0: none) build up to PREFETCHED batches ahead; `close()` on the result
    stops them. With `keep_decoded` each image is decoded once, which takes `cache_bytes` in total.
    A `DataError` of a record is raised by the `next` that would have returned it.
    """
    share = share_of_process(batch_size, process_index, process_count)

    form = {"canvas": canvas, "max_objects": max_objects}
    rows = functools.partial(decode_rows, source, **form)
    if keep_decoded:
        row = functools.cache(lambda index: decode_example(source[index], index, **form))
        rows = lambda indices: _stacked(map(row, indices.tolist()))  # noqa: E731
    positions = train_positions(
        len(source), batch_size=batch_size, seed=seed, start_step=start_step
    )
    batches = positions.map(lambda indices: rows(indices[share]))
    return _iterate(batches, num_threads)


def evaluation_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: int,
    max_objects: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
) -> Iterator[Batch]:
    """Batches with every image once, in order; rows that pad the last batch are not `real`.

    Every process gets the same number of batches. See `train_batches` for the other arguments.
    """
    import grain

    share = share_of_process(batch_size, process_index, process_count)
    length = math.ceil(len(source) / batch_size) * batch_size
    positions = grain.MapDataset.range(length).batch(batch_size)
    batches = positions.map(
        lambda indices: decode_rows(source, indices[share], canvas=canvas, max_objects=max_objects)
    )
    return _iterate(batches, num_threads)


def share_of_process(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a process; joined in the order of processes they are the global batch."""
    if batch_size % process_count:
        raise UserError(
            f"batch_size is {batch_size}: expected a multiple of the {process_count} processes"
        )
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def decode_rows(
    source: Source,
    indices: Int[np.ndarray, "B"],
    *,
    canvas: int,
    max_objects: int,
    apply: Callable[..., Iterable] = map,
) -> Batch:
    """The images at `indices` as a batch; an index beyond the source gives a row not `real`.

    `apply` calls a function on each row, as `map` does or the `map` of an executor.
    """
    batch = empty_rows(len(indices), canvas=canvas, max_objects=max_objects)

    def fill(place: int, index: int) -> None:
        row = Batch(*(field[place, ...] for field in batch))
        if index < len(source):
            decode_into(row, source[index], index)
        else:
            _fill_unreal(row)

    list(apply(fill, range(len(indices)), indices.tolist()))
    return batch


def _fill_unreal(row: Batch) -> None:
    for field in row:
        field[...] = 0
    row.extent[:] = row.size[:] = 1  # there is no image, but later code divides by these


def _stacked(rows: Iterable[Batch]) -> Batch:
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def _iterate(batches, num_threads: int) -> Iterator[Batch]:
    import grain

    # A thread without a place for its batch waits.
    ahead = max(PREFETCHED, num_threads)
    options = grain.ReadOptions(num_threads=int(num_threads), prefetch_buffer_size=int(ahead))
    return iter(batches.to_iter_dataset(options))
