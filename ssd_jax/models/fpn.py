"""Fusion of the feature maps from coarse to fine: Feature Pyramid Networks (arXiv:1612.03144)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.models.layers import ConvStyle, conv_layer


class FeaturePyramid(nn.Module):
    """Fuse each map with all coarser ones; every map gets `channels`, sizes do not change.

    A 1x1 convolution of each map is added to the enlarged coarser result (nearest neighbour); a 3x3
    convolution of each sum follows. Unlike in the paper it ends in a ReLU, because SSD's heads are
    a single convolution: two without anything in between would act as one.
    """

    style: ConvStyle
    channels: int

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...], *, train: bool
    ) -> tuple[Float[Array, "B _ _ {self.channels}"], ...]:
        """Fuse maps, finest first."""
        options = {"style": self.style, "train": train}
        fused, coarser = [], None
        for level in reversed(range(len(maps))):
            own = conv_layer(
                maps[level], self.channels, name=f"lateral_{level}", kernel=1, relu=False, **options
            )
            coarser = own if coarser is None else own + enlarge(coarser, own.shape[1:3])
            fused.append(conv_layer(coarser, self.channels, name=f"output_{level}", **options))
        return tuple(reversed(fused))


def enlarge(
    x: Float[Array, "B h w c"], size: tuple[int, int]
) -> Float[Array, "B {size[0]} {size[1]} c"]:
    """Repeat each pixel as a block, and cut the result to `size`.

    It copies instead of indexing, because the gradient of copies is a sum that is the same every
    time.
    """
    images, height, width, channels = x.shape
    times_down, times_across = -(-size[0] // height), -(-size[1] // width)
    columns = jnp.concatenate([x.reshape(images, height * width, channels)] * times_across, axis=-1)
    rows = columns.reshape(images, height, width * times_across * channels)
    x = jnp.concatenate([rows] * times_down, axis=-1)
    x = x.reshape(images, height * times_down, width * times_across, channels)
    return x if x.shape[1:3] == size else x[:, : size[0], : size[1]]
