"""Pictures on the devices: the same batches as from the host, with little sent between devices."""

import itertools
import re

import jax
import numpy as np
import pytest
from data.test_pipeline import TinySource

from ssd_jax.data.device_cache import _picker, cached_batches, fill_device_cache
from ssd_jax.data.pipeline import train_batches
from ssd_jax.sharding import make_mesh, put_replicated, split

SIZES = {"canvas": 8, "max_objects": 2}


@pytest.fixture(scope="module", params=[1, 8])
def mesh(request):
    return make_mesh(jax.devices()[: request.param])


@pytest.fixture(scope="module")
def cache(mesh):
    return fill_device_cache(TinySource(), mesh, num_threads=2, **SIZES)


@pytest.mark.parametrize("start_step", [0, 3])
def test_batches_are_those_of_the_pipeline(mesh, cache, start_step):
    words = {"batch_size": 8, "seed": 5, "start_step": start_step}
    from_host = train_batches(TinySource(), **words, **SIZES)
    from_device = cached_batches(cache, mesh, num_images=10, **words)
    for host, (indices, device) in itertools.islice(zip(from_host, from_device, strict=False), 4):
        assert indices.tolist() == host.sample_id.tolist()
        for ours, theirs in zip(device, host, strict=True):
            assert ours.sharding.is_equivalent_to(split(mesh), ours.ndim)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    from_host.close()


def test_every_device_holds_its_share(mesh, cache):
    rows = {shard.data.shape[0] for shard in cache.canvas.addressable_shards}
    assert rows == {-(-10 // mesh.size)}
    assert int(cache.real.sum()) == 10


def test_no_device_is_sent_more_than_the_batch(mesh, cache):
    indices = put_replicated(np.arange(8, dtype=np.int32), mesh)
    program = _picker(mesh).lower(cache, indices).compile().as_text()
    assert not re.search("all-gather|all-to-all", program)
