"""Decoded images in device memory: once they are there, the host sends nothing but indices."""

import functools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int
from tqdm import tqdm

from ssd_jax.data.decode import empty_rows
from ssd_jax.data.pipeline import decode_rows, train_positions
from ssd_jax.data.sources.base import Source
from ssd_jax.sharding import BATCH_AXIS, put_replicated, split
from ssd_jax.types import Batch

# The number of images that are decoded before they are sent.
_CHUNK = 256


def fill_device_cache(
    source: Source, mesh: Mesh, *, canvas: int, max_objects: int, num_threads: int
) -> Batch:
    """All rows of the source, decoded and sharded evenly over the devices of the mesh.

    Each process decodes the rows of its own devices. Padding rows fill up the last device.
    """
    per_device = math.ceil(len(source) / mesh.size)
    form = {"canvas": canvas, "max_objects": max_objects}
    own = [
        (device, place * per_device)
        for place, device in enumerate(mesh.devices.flat)
        if device.process_index == jax.process_index()
    ]
    shards = []
    with (
        ThreadPoolExecutor(max(1, num_threads)) as threads,
        tqdm(total=len(own) * per_device, desc="filling the cache", disable=None) as progress,
    ):
        for device, first in own:
            shard = jax.tree.map(
                lambda x, device=device: jnp.zeros(
                    (per_device, *x.shape[1:]), x.dtype, device=device
                ),
                empty_rows(0, **form),
            )
            for start in range(0, per_device, _CHUNK):
                rows = np.arange(start, min(start + _CHUNK, per_device))
                part = decode_rows(source, first + rows, **form, apply=threads.map)
                shard = _write(shard, jax.device_put(part, device), start)
                progress.update(len(rows))
            shards.append(shard)
    return jax.tree.map(
        lambda *pieces: jax.make_array_from_single_device_arrays(
            (mesh.size * per_device, *pieces[0].shape[1:]), split(mesh), list(pieces)
        ),
        *shards,
    )


def cached_batches(
    cache: Batch, mesh: Mesh, *, num_images: int, batch_size: int, seed: int, start_step: int = 0
) -> Iterator[tuple[np.ndarray, Batch]]:
    """The batches of `pipeline.train_batches`, picked on the devices, with their indices."""
    pick = _picker(mesh)
    for indices in train_positions(
        num_images, batch_size=batch_size, seed=seed, start_step=start_step
    ):
        yield indices, pick(cache, put_replicated(indices.astype(np.int32), mesh))


def _picker(mesh: Mesh):
    """A function that gathers the rows of a batch from all devices and shards the batch.

    Every device builds the whole batch from the rows that it holds and zeros for the others; these
    are summed, and each device keeps its own shard of the sum.
    """

    def pick(cache: Batch, indices: jax.Array) -> Batch:
        rows = len(cache.real)
        local = indices - jax.lax.axis_index(BATCH_AXIS) * rows
        here = (local >= 0) & (local < rows)

        def pick_column(column: jax.Array) -> jax.Array:
            taken = column[jnp.clip(local, 0, rows - 1)]
            taken = jnp.where(here.reshape(-1, *(1,) * (taken.ndim - 1)), taken, 0)
            summed = jax.lax.psum_scatter(
                taken.astype(jnp.uint8) if taken.dtype == bool else taken, BATCH_AXIS, tiled=True
            )
            return summed.astype(column.dtype)

        return jax.tree.map(pick_column, cache)

    by_row = PartitionSpec(BATCH_AXIS)
    return jax.jit(
        jax.shard_map(pick, mesh=mesh, in_specs=(by_row, PartitionSpec()), out_specs=by_row)
    )


@functools.partial(jax.jit, donate_argnums=0)
def _write(shard: Batch, part: Batch, start: Int[Array, ""] | int) -> Batch:
    return jax.tree.map(
        lambda column, rows: jax.lax.dynamic_update_slice_in_dim(column, rows, start, axis=0),
        shard,
        part,
    )
