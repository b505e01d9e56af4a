"""VGG16 as the base of SSD (arXiv:1512.02325, section 3.1), with Caffe's layer names."""

from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.models.layers import ConvStyle, L2Normalize, conv_layer
from ssd_jax.models.pooling import max_pool

# (channels, convolutions) of conv1 to conv5
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG16(nn.Module):
    """The thirteen convolutions, then fc6 and fc7 as convolutions; no dropout.

    Features are conv4_3 (stride 8), L2-normalised, and fc7 (stride 16).
    """

    style: ConvStyle = ConvStyle()
    l2_epsilon: float = 1e-10

    @nn.compact
    def __call__(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Map normalised images to the two feature maps, finest first."""
        style = self.style
        x = images.astype(style.dtype)
        for block, (channels, convolutions) in enumerate(_BLOCKS, start=1):
            for index in range(1, convolutions + 1):
                x = conv_layer(
                    x,
                    style.channels(channels),
                    style=style,
                    name=f"conv{block}_{index}",
                    train=train,
                )
            if block == 4:
                conv4_3 = L2Normalize(epsilon=self.l2_epsilon, name="conv4_3_norm")(x)
            if block < 5:
                # Only pool3 rounds up: 75 -> 38 at 300 px. pool5 keeps the size; the dilation of
                # fc6 compensates for its missing stride.
                x = max_pool(x, window=2, stride=2, round_up=block == 3)
            else:
                x = max_pool(x, window=3, stride=1, padding=1)
        wide = style.channels(1024)
        x = conv_layer(x, wide, style=style, name="fc6", train=train, dilation=6)
        fc7 = conv_layer(x, wide, style=style, name="fc7", train=train, kernel=1)
        return conv4_3, fc7
