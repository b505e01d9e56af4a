"""ResNet-50 v2 as the base of SSD, as in mxnet-ssd and SageMaker."""

import dataclasses

from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.models.layers import ConvStyle, batch_norm, conv_layer, rectify
from ssd_jax.models.pooling import max_pool
from ssd_jax.models.resnet import STAGES


class ResNet50V2(nn.Module):
    """ResNet-50 with pre-activation blocks (arXiv:1603.05027) after a BatchNorm of the image.

    That first BatchNorm has no scale. Features are the raw sums at the end of the stages from
    `first_stage` on, without the BatchNorm and ReLU that would follow: `_plus12` (stage 3, stride
    16) and `_plus15` (stage 4, stride 32) of mxnet-ssd, symbol/resnet.py, with the names used
    there.
    """

    style: ConvStyle = ConvStyle(bias=False, batch_norm="batch", batch_norm_epsilon=2e-5)
    first_stage: int = 3

    @nn.compact
    def __call__(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Map images to the feature maps, finest first."""
        style = self.style
        no_scale = dataclasses.replace(style, batch_norm_scale=False)
        x = images.astype(style.dtype)
        x = batch_norm(x, style=no_scale, name="bn_data", train=train)
        x = _convolve(x, style.channels(64), style=style, name="conv0", kernel=7, stride=2)
        x = rectify(batch_norm(x, style=style, name="bn0", train=train))
        x = max_pool(x, window=3, stride=2, padding=1)
        features = []
        for stage, (channels, blocks) in enumerate(STAGES, start=1):
            for block in range(1, blocks + 1):
                x = PreActivationBottleneck(
                    style,
                    channels,
                    stride=2 if stage > 1 and block == 1 else 1,
                    project=block == 1,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
            if stage >= self.first_stage:
                features.append(x)
        return tuple(features)


class PreActivationBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after BatchNorm and ReLU; nothing follows the sum.

    The projection of the shortcut shares the first BatchNorm and ReLU.
    """

    style: ConvStyle
    channels: int
    stride: int
    project: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B _ _ _"], *, train: bool) -> Float[Array, "B _ _ _"]:
        """Add the block to its input, which is projected if size or channels change."""
        style = self.style
        inner, outer = style.channels(self.channels), style.channels(4 * self.channels)
        shortcut = x
        x = rectify(batch_norm(x, style=style, name="bn1", train=train))
        if self.project:
            shortcut = _convolve(x, outer, style=style, name="shortcut", stride=self.stride)
        x = _convolve(x, inner, style=style, name="conv1")
        x = rectify(batch_norm(x, style=style, name="bn2", train=train))
        x = _convolve(x, inner, style=style, name="conv2", kernel=3, stride=self.stride)
        x = rectify(batch_norm(x, style=style, name="bn3", train=train))
        return shortcut + _convolve(x, outer, style=style, name="conv3")


def _convolve(
    x: Float[Array, "B _ _ _"],
    channels: int,
    *,
    style: ConvStyle,
    name: str,
    kernel: int = 1,
    stride: int = 1,
) -> Float[Array, "B _ _ _"]:
    """Only the convolution; inside a compact method."""
    return conv_layer(
        x,
        channels,
        style=dataclasses.replace(style, batch_norm="none"),
        name=name,
        train=False,
        kernel=kernel,
        stride=stride,
        relu=False,
    )
