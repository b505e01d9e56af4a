"""Groups of consecutive images that are counted together, on one device or across several."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from ssd_jax.errors import UserError


def group_size(images: int, group: int, *, batch_axis: str | None = None) -> int:
    """The number of images of a group: `group`, or the whole batch if it is 0.

    `images` is the number of local images. Inside `jax.shard_map`, `batch_axis` is the mapped axis
    over which the batch is sharded, and the whole batch has more images.
    """
    batch = images if batch_axis is None else images * jax.lax.axis_size(batch_axis)
    if batch % (group or batch):
        raise UserError(
            f"groups of {group} images do not divide a batch of {batch}. Choose a group size that "
            "divides the batch size, or 0 for the whole batch."
        )
    return group or batch


def group_sums(
    values: Num[Array, "B *rest"], group: int, *, batch_axis: str | None = None
) -> Num[Array, "B *rest"]:
    """For each image the sum over its group; arguments as in `group_size`.

    Groups start at the first image of the whole batch, so they do not depend on the sharding. If
    every group is on one device it is summed there; otherwise one all-reduce brings the sums of all
    groups to every device.
    """
    size = group_size(len(values), group, batch_axis=batch_axis)
    if len(values) % size == 0:
        sums = values.reshape(-1, size, *values.shape[1:]).sum(axis=1)
        return jnp.repeat(sums, size, axis=0)
    batch = len(values) * jax.lax.axis_size(batch_axis)
    image = jax.lax.axis_index(batch_axis) * len(values) + jnp.arange(len(values))
    belongs = image[:, None] // size == jnp.arange(batch // size)
    belongs = belongs.reshape(*belongs.shape, *(1,) * (values.ndim - 1))
    # Masked sums are the same every time; the result of a scatter on a GPU is not.
    sums = jax.lax.psum(jnp.where(belongs, values[:, None], 0).sum(axis=0), batch_axis)
    return jnp.where(belongs, sums, 0).sum(axis=1)
