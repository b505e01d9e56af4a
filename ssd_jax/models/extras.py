"""The layers after the backbone; each adds one coarser feature map."""

import dataclasses
from typing import NamedTuple

from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.models.layers import ConvStyle, conv_layer


class ExtraLayer(NamedTuple):
    """A 1x1 convolution to `reduced` channels, then one of `kernel` x `kernel` to `channels`."""

    reduced: int
    channels: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1


# SSD300 and SSD512 of the paper; ResNet as GluonCV's `ssd_512_resnet50_v1_voc`.
_SSD300 = (
    ExtraLayer(256, 512),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256, stride=1, padding=0),
    ExtraLayer(128, 256, stride=1, padding=0),
)
_SSD512 = (
    ExtraLayer(256, 512),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256, kernel=4, stride=1),
)
_RESNET = (
    ExtraLayer(512, 512),
    ExtraLayer(512, 512),
    ExtraLayer(256, 256),
    ExtraLayer(256, 256),
)
_SMALL = (ExtraLayer(64, 128),) * 6
# symbol/symbol_factory.py of mxnet-ssd. Its SSD300 is the paper's; the last map of its SSD512 stays
# 2x2. All other backbones have one layout.
_MXNET_SSD512 = (*_SSD512[:4], ExtraLayer(128, 256, stride=1))
_MXNET = (
    ExtraLayer(256, 512),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256),
    ExtraLayer(128, 128),
)
# From this image size on, VGG16 uses the layout of SSD512.
_SSD512_FROM = 448


class ExtraLayers(nn.Module):
    """The extra layers of a layout that fit.

    Layers are added until the next kernel does not fit, and not after a map of 1x1 unless
    `beyond_one`: 300 px gives the six maps of SSD300, 128 px stops at 2x2 after two extra layers.
    They are named conv6_1, conv6_2, conv7_1, ... A call uses the first `at_most` of them.
    """

    layout: tuple[ExtraLayer, ...]
    style: ConvStyle = ConvStyle()
    beyond_one: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B _ _ _"], *, train: bool, at_most: int | None = None
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Map the last feature map of the backbone to the coarser ones."""
        style = self.style
        features = []
        for number, layer in enumerate(self.layout[:at_most], start=6):
            side = min(x.shape[1:3])
            at_end = side == 1 and not self.beyond_one
            if at_end or side + 2 * layer.padding < layer.kernel:
                break
            reduced = conv_layer(
                x,
                style.channels(layer.reduced),
                style=style,
                name=f"conv{number}_1",
                train=train,
                kernel=1,
            )
            x = conv_layer(
                reduced,
                style.channels(layer.channels),
                style=style,
                name=f"conv{number}_2",
                train=train,
                kernel=layer.kernel,
                stride=layer.stride,
                padding=layer.padding,
            )
            features.append(x)
        return tuple(features)


def paper_extras(backbone: str, image_size: int, style: ConvStyle) -> ExtraLayers:
    """The paper's layers after VGG16, GluonCV's after a ResNet; stops at a map of 1x1."""
    if backbone == "vgg16":
        return ExtraLayers(_SSD300 if image_size < _SSD512_FROM else _SSD512, style)
    if backbone == "small":
        return ExtraLayers(_SMALL, style)
    if backbone == "resnet50_v1":
        # gluoncv/nn/feature.py builds them with the defaults of MXNet's symbol BatchNorm.
        style = dataclasses.replace(style, batch_norm_epsilon=1e-3, batch_norm_scale=False)
    return ExtraLayers(_RESNET, style)


def mxnet_extras(backbone: str, image_size: int, style: ConvStyle) -> ExtraLayers:
    """The layers of mxnet-ssd: with biases, without BatchNorm, all of them at any image size."""
    style = dataclasses.replace(style, bias=True, batch_norm="none")
    layout = _MXNET
    if backbone == "vgg16":
        layout = _SSD300 if image_size < _SSD512_FROM else _MXNET_SSD512
    return ExtraLayers(layout, style, beyond_one=True)
