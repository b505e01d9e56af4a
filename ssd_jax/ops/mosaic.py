"""Four training images in one: mosaic (Bochkovskiy et al. 2020, arXiv:2004.10934, section 3.4).

Four augmented images meet at a point of a plane with twice their side. Each of the four is replaced
by a window of the plane around that point, with a side of one to two images, scaled back to one: it
shows objects at down to half their size, next to objects of other images.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssd_jax.ops.boxes import clip
from ssd_jax.ops.crop import centre_inside
from ssd_jax.ops.images import resample

GROUP = 4  # consecutive images of a batch
Columns = TypeVar("Columns")


class Mosaic(NamedTuple):
    """The probability that an image becomes a mosaic, and the range of the window's side."""

    probability: float | Float[Array, ""] = 0.5
    scale: tuple[float, float] = (1.0, 2.0)  # in image sides, 1 to 2


def mosaic(
    keys: Key[Array, "4"],
    images: Float[Array, "4 S S 3"],
    boxes: Float[Array, "4 G 4"],
    valid: Bool[Array, "4 G"],
    columns: Columns,
    *,
    settings: Mosaic,
) -> tuple[Float[Array, "4 S S 3"], Float[Array, "4 4*G 4"], Bool[Array, "4 4*G"], Columns]:
    """Replace each image by a window drawn with its key, or keep it: images, boxes, valid, columns.

    `columns` has the other attributes of the objects, a tree of [4, G]. An object stays `valid` if
    its centre is in the window; its box is clipped to the window.
    """
    size, objects = images.shape[1], boxes.shape[1]
    plane = images.reshape(2, 2, size, size, 3).swapaxes(1, 2).reshape(2 * size, 2 * size, 3)
    corners = jnp.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    in_plane = (size * (boxes + jnp.tile(corners, 2)[:, None])).reshape(-1, 4)
    all_valid, all_columns = jax.tree.map(jnp.ravel, (valid, columns))

    def one(key, index):
        chosen, window = _sample_window(key, size, settings)
        origin, side = jnp.tile(window[:2], 2), window[2] - window[0]
        tiled = (
            resample(plane, jnp.array(plane.shape[:2]), window, size=size, fill=(0, 0, 0)),
            clip((in_plane - origin) / side),
            all_valid & centre_inside(in_plane, window.astype(jnp.float32)),
            all_columns,
        )
        room = (0, (GROUP - 1) * objects)
        alone = (
            images[index],
            jnp.pad(boxes[index], (room, (0, 0))),
            jnp.pad(valid[index], room),
            jax.tree.map(lambda column: jnp.pad(column[index], room), columns),
        )
        return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), tiled, alone)

    return jax.vmap(one)(keys, jnp.arange(GROUP))


def _sample_window(
    key: Key[Array, ""], size: int, settings: Mosaic
) -> tuple[Bool[Array, ""], Int[Array, "4"]]:
    """Whether the image becomes a mosaic, and its window in pixels, with the point inside."""
    chance, for_side, *for_place = jax.random.uniform(key, (4,))
    low, high = settings.scale
    side = jnp.round(size * (low + for_side * (high - low))).astype(jnp.int32)
    # Even a window of one image side contains the point, wherever it is in the plane.
    place = jnp.floor(jnp.stack(for_place) * (2 * size - side + 1)).astype(jnp.int32)
    return chance < settings.probability, jnp.concatenate([place, place + side])
