"""Groups of images: the same sums however the batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssd_jax.errors import UserError
from ssd_jax.models.groups import group_sums

VALUES = jnp.asarray(np.random.default_rng(0).integers(-9, 9, (24, 2)), jnp.float32)


# On eight devices of three images: inside a device, several devices, cut across, the whole batch.
@pytest.mark.parametrize("group", [1, 3, 6, 4, 0])
def test_sums_do_not_depend_on_how_the_batch_is_cut(group, mesh_of_eight):
    size = group or len(VALUES)
    expected = np.repeat(VALUES.reshape(-1, size, 2).sum(axis=1), size, axis=0)
    np.testing.assert_array_equal(group_sums(VALUES, group), expected)
    cut = jax.shard_map(
        lambda x: group_sums(x, group, batch_axis="data"),
        mesh=mesh_of_eight,
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec("data"),
    )
    compiled = jax.jit(cut).lower(VALUES).compile()
    np.testing.assert_array_equal(compiled(VALUES), expected)
    assert ("all-reduce" in compiled.as_text()) == (group not in (1, 3))


def test_a_group_that_does_not_divide_the_batch_is_an_error():
    with pytest.raises(UserError, match="groups of 5 images do not divide a batch of 24"):
        group_sums(VALUES, 5)
