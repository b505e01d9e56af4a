"""ResNet-50 v1 and v1.5 as the base of SSD."""

from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.models.layers import ConvStyle, conv_layer, rectify
from ssd_jax.models.pooling import max_pool

# (channels inside a block, blocks) of stages 1 to 4; stage n has stride 2 ** (n + 1).
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))


class ResNet50(nn.Module):
    """ResNet-50 (arXiv:1512.03385).

    `stride_first` puts the stride of a block in its first 1x1 convolution, as the paper and
    GluonCV's `resnet50_v1` do, else in the 3x3 ("v1.5"). GluonCV's biases before BatchNorm are
    omitted: they only shift the mean, which BatchNorm subtracts.

    Features are the outputs, after ReLU, of the stages from `first_stage` on. Stage 2 has stride 8,
    stage 3 stride 16, stage 4 stride 32.
    """

    style: ConvStyle = ConvStyle(bias=False, batch_norm="batch")
    first_stage: int = 3
    stride_first: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Map normalised images to the feature maps, finest first."""
        style = self.style
        x = images.astype(style.dtype)
        x = conv_layer(
            x, style.channels(64), style=style, name="conv1", train=train, kernel=7, stride=2
        )
        x = max_pool(x, window=3, stride=2, padding=1)
        features = []
        for stage, (channels, blocks) in enumerate(STAGES, start=1):
            for block in range(1, blocks + 1):
                x = Bottleneck(
                    style,
                    channels,
                    stride=2 if stage > 1 and block == 1 else 1,
                    project=block == 1,
                    stride_first=self.stride_first,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
            if stage >= self.first_stage:
                features.append(x)
        return tuple(features)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; `channels` are those of the middle one."""

    style: ConvStyle
    channels: int
    stride: int
    project: bool
    stride_first: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B _ _ _"], *, train: bool) -> Float[Array, "B _ _ _"]:
        """Add the block to its input, which is projected if size or channels change."""
        style = self.style
        inner, outer = style.channels(self.channels), style.channels(4 * self.channels)
        shortcut = x
        if self.project:
            shortcut = conv_layer(
                x,
                outer,
                style=style,
                name="shortcut",
                train=train,
                kernel=1,
                stride=self.stride,
                relu=False,
            )
        first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
        x = conv_layer(x, inner, style=style, name="conv1", train=train, kernel=1, stride=first)
        x = conv_layer(x, inner, style=style, name="conv2", train=train, stride=second)
        x = conv_layer(
            x,
            outer,
            style=style,
            name="conv3",
            train=train,
            kernel=1,
            relu=False,
            norm_scale=0.0,  # a block starts as its shortcut: arXiv:1706.02677, section 5.1
        )
        return rectify(x + shortcut)
