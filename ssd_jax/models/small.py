"""A small base for laptops, tests and first trials, with few layers that train in few steps."""

from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.models.layers import ConvStyle, conv_layer

# (channels, stride) of the 3x3 convolutions up to each of the two features.
_TO_STRIDE_8 = ((16, 2), (32, 2), (64, 2), (128, 1))
_TO_STRIDE_16 = ((128, 2), (128, 1))


class Small(nn.Module):
    """Six 3x3 convolutions; features at strides 8 and 16."""

    style: ConvStyle = ConvStyle()

    @nn.compact
    def __call__(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Map normalised images to the two feature maps, finest first."""
        x = images.astype(self.style.dtype)
        features = []
        for block, layers in enumerate((_TO_STRIDE_8, _TO_STRIDE_16), start=1):
            for index, (channels, stride) in enumerate(layers, start=1):
                x = conv_layer(
                    x,
                    self.style.channels(channels),
                    style=self.style,
                    name=f"conv{block}_{index}",
                    train=train,
                    stride=stride,
                )
            features.append(x)
        return tuple(features)
