"""The batches of the training split that a config describes, from the host or from a cache."""

import contextlib
import functools
import socket
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from ssd_jax.cluster import exchange
from ssd_jax.data.device_cache import cached_batches, fill_device_cache
from ssd_jax.data.pipeline import (
    cache_bytes,
    evaluation_batches,
    max_objects,
    share_of_process,
    train_batches,
)
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.hardware import cores, memory_bytes
from ssd_jax.ops.images import normalise, resize
from ssd_jax.sharding import put_batch
from ssd_jax.types import Batch

# Per device: each thread decodes several hundred images a second, which keeps a device busy.
_MOST_THREADS = 16


def host_batches(
    config: ConfigDict, source: Source, *, start_step: int, num_threads: int
) -> Iterator[Batch]:
    """The rows of the batches that belong to this process, without end."""
    return train_batches(
        source,
        batch_size=config.batch_size,
        seed=config.seed,
        canvas=config.data.canvas,
        max_objects=max_objects(source),
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=num_threads,
        keep_decoded=config.data.cache == "ram",
    )


def decoding_threads(config: ConfigDict) -> int:
    """The config's number, or one per core, at most 16 per device of this process."""
    threads = config.data.threads
    most = _MOST_THREADS * jax.local_device_count()
    return min(most, cores()) if threads is None else threads


def network_inputs(
    config: ConfigDict, source: Source, *, count: int
) -> Float[np.ndarray, "B S S 3"]:
    """The first `count` images, or all if there are fewer, as network input without augmentation.

    The same on every process.
    """
    batch = next(
        evaluation_batches(
            source,
            batch_size=min(count, len(source)),
            canvas=config.data.canvas,
            max_objects=max_objects(source),
            num_threads=0,
        )
    )
    stretch = functools.partial(resize, size=config.model.image_size)
    images = jax.vmap(stretch)(batch.canvas, batch.extent)
    return np.asarray(normalise(images, config.preprocess.mean, config.preprocess.std))


def mesh_batches(
    config: ConfigDict, source: Source, mesh: Mesh, *, start_step: int
) -> Iterator[tuple[list[str], Batch]]:
    """Names of the images of this process, and the batch on the mesh, without end."""
    if config.data.cache != "device":
        return _batches_from_host(config, source, mesh, start_step=start_step)
    # Filled here, before the clock and the progress bar of the training start.
    cache = fill_device_cache(
        source,
        mesh,
        canvas=config.data.canvas,
        max_objects=max_objects(source),
        num_threads=decoding_threads(config),
    )
    share = share_of_process(config.batch_size, jax.process_index(), jax.process_count())
    batches = cached_batches(
        cache,
        mesh,
        num_images=len(source),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
    )
    return (([source.names[i] for i in indices[share]], batch) for indices, batch in batches)


def _batches_from_host(config, source, mesh, *, start_step) -> Iterator[tuple[list[str], Batch]]:
    names = source.names
    with contextlib.closing(
        host_batches(config, source, start_step=start_step, num_threads=decoding_threads(config))
    ) as batches:
        for batch in batches:
            yield [names[index] for index in batch.sample_id], put_batch(batch, mesh)


def describe_cache(config: ConfigDict, source: Source, mesh: Mesh) -> str:
    """A line about the memory that the cache will take.

    The memory that a step needs in addition is printed once the step is compiled. All processes
    must call this: those of one host share its memory, and each keeps all images there.

    Raises:
      UserError: there is not enough memory.
    """
    needed = cache_bytes(source, canvas=config.data.canvas)
    if config.data.cache == "ram":
        processes = exchange(socket.gethostname()).count(socket.gethostname())
        needed *= processes
        # All memory of the machine, since what other programs and the page cache hold may be freed.
        where, free, beside = "memory", memory_bytes(), ""
        if processes > 1:
            where += f", a copy for each of {processes} processes on a host"
    else:
        where = f"the memory of {mesh.size} devices"
        of_one = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
        free = of_one and of_one * mesh.size
        beside = ", in addition to what a step needs"
    if free and needed > free:
        raise UserError(
            f"config.data.cache: {config.data.cache!r} needs {needed / 2**30:.1f} GiB of {where}; "
            f"expected at most the {free / 2**30:.1f} GiB available{beside}. Use 'none' or a "
            "smaller config.data.canvas."
        )
    return f"decoded training images are kept in {where}: {needed / 2**20:,.1f} MiB{beside}"


def device_cache_bytes(config: ConfigDict, source: Source, mesh: Mesh) -> int:
    """The bytes that `config.data.cache` takes on each device."""
    if config.data.cache != "device":
        return 0
    return -(-cache_bytes(source, canvas=config.data.canvas) // mesh.size)
