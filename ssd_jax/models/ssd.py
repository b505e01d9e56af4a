"""The Single Shot MultiBox Detector (arXiv:1512.02325): backbone, extra layers, heads.

How the parts of a run fit together:

    shapes = feature_shapes(backbone="vgg16", image_size=300)      # ((38, 38), (19, 19), ...)
    ...one anchor level for each shape; from them the anchors per cell...
    model = build_model(backbone="vgg16", image_size=300, num_classes=20, anchors_per_cell=...)
    variables = init_variables(model, image_size=300, seed=0)
    box_deltas, class_logits = model.apply(variables, images, train=False)
"""

import functools
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.errors import UserError
from ssd_jax.models.layers import ConvStyle, conv_layer
from ssd_jax.models.resnet import ResNet50
from ssd_jax.models.small import Small
from ssd_jax.models.vgg import VGG16

_BACKBONES = ("vgg16", "resnet50", "small")
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_BATCH_NORMS = ("none", "frozen", "batch")
# Below, the backbones leave maps of 2x2 and 1x1 at most, on which there is nothing to detect.
_SMALLEST_IMAGE = 64


class ExtraLayer(NamedTuple):
    """A 1x1 convolution to `reduced` channels, then one of `kernel` x `kernel` to `channels`."""

    reduced: int
    channels: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1


# SSD300 and SSD512 of the paper; ResNet as GluonCV's `ssd_512_resnet50_v1_voc`.
_SSD300_EXTRAS = (
    ExtraLayer(256, 512),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256, stride=1, padding=0),
    ExtraLayer(128, 256, stride=1, padding=0),
)
_SSD512_EXTRAS = (
    ExtraLayer(256, 512),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256, kernel=4, stride=1),
)
_RESNET_EXTRAS = (
    ExtraLayer(256, 512),
    ExtraLayer(256, 512),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256),
)
_SMALL_EXTRAS = (ExtraLayer(64, 128),) * 6
# From this image size on VGG16 takes the layout of SSD512.
_SSD512_FROM = 448


class ExtraLayers(nn.Module):
    """The layers behind the backbone, each of which gives one more, coarser feature map.

    The layout is followed until a map is 1x1, or too small for the next kernel: 300 px gives the
    six maps of SSD300, 128 px stops at 2x2 after two extra layers. They are named conv6_1, conv6_2,
    conv7_1, ...
    """

    layout: tuple[ExtraLayer, ...]
    style: ConvStyle = ConvStyle()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B _ _ _"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Map the backbone's last feature map to the further ones, finest first."""
        style = self.style
        features = []
        for number, layer in enumerate(self.layout, start=6):
            side = min(x.shape[1:3])
            if side == 1 or side + 2 * layer.padding < layer.kernel:
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


class Heads(nn.Module):
    """Two 3x3 convolutions on each feature map; anchors run over map, y, x, anchor of the cell."""

    anchors_per_cell: tuple[int, ...]
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: tuple[Float[Array, "B _ _ _"], ...]
    ) -> tuple[Float[Array, "B A 4"], Float[Array, "B A {self.num_classes}+1"]]:
        """Predict box deltas and class logits, in float32, background at channel 0."""
        _check_levels(self.anchors_per_cell, len(features))
        box_deltas, class_logits = [], []
        for level, (x, anchors) in enumerate(zip(features, self.anchors_per_cell, strict=True)):
            boxes = self._conv(anchors * 4, name=f"box_{level}")(x)
            logits = self._conv(anchors * (self.num_classes + 1), name=f"class_{level}")(x)
            box_deltas.append(boxes.reshape(x.shape[0], -1, 4))
            class_logits.append(logits.reshape(x.shape[0], -1, self.num_classes + 1))
        return (
            jnp.concatenate(box_deltas, axis=1).astype(jnp.float32),
            jnp.concatenate(class_logits, axis=1).astype(jnp.float32),
        )

    def _conv(self, channels: int, *, name: str) -> nn.Conv:
        return nn.Conv(channels, (3, 3), padding=1, dtype=self.dtype, name=name)


class SSD(nn.Module):
    """Images -> (box_deltas, class_logits) of all anchors."""

    backbone: nn.Module
    extras: ExtraLayers
    heads: Heads

    def features(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Give the feature maps that the heads look at, finest first."""
        maps = self.backbone(images, train=train)
        return (*maps, *self.extras(maps[-1], train=train))

    def __call__(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B A 4"], Float[Array, "B A _"]]:
        """Predict on images that are already normalised, NHWC."""
        return self.heads(self.features(images, train=train))


def build_model(
    *,
    backbone: str,
    num_classes: int,
    image_size: int,
    anchors_per_cell: tuple[int, ...],
    width: float = 1.0,
    dtype: str = "float32",
    batch_norm: str = "none",
    batch_norm_group: int = 0,
    first_stage: int | None = None,
) -> SSD:
    """Build the network; `num_classes` does not count the background.

    `anchors_per_cell` has one entry for each of `feature_shapes`. `width` multiplies all channels.
    `batch_norm` is "none" (VGG16 as published), "frozen" or "batch", the latter with statistics
    over groups of `batch_norm_group` images (0: the whole batch). `first_stage` is the ResNet's
    first stage that is detected on (None: 3, stride 16).
    """
    _check_at_least(1, num_classes=num_classes)
    _check_at_least(0, batch_norm_group=batch_norm_group)
    for anchors in anchors_per_cell:
        _check_at_least(1, anchors_per_cell=anchors)
    if not width > 0:
        raise UserError(f"width is {width}, expected more than 0; 1.0 is the published network.")
    _check_choice("batch_norm", batch_norm, _BATCH_NORMS)
    if backbone == "resnet50" and batch_norm == "none":
        raise UserError(
            'backbone "resnet50" does not train with batch_norm "none". Set batch_norm to "batch", '
            'or to "frozen" with pretrained weights.'
        )
    _check_choice("dtype", dtype, _DTYPES)
    shapes = feature_shapes(backbone=backbone, image_size=image_size, first_stage=first_stage)
    _check_levels(anchors_per_cell, len(shapes))
    style = ConvStyle(
        width=width,
        dtype=_DTYPES[dtype],
        bias=backbone != "resnet50",
        batch_norm=batch_norm,
        batch_norm_group=batch_norm_group,
    )
    heads = Heads(tuple(anchors_per_cell), num_classes, dtype=_DTYPES[dtype])
    return _assemble(backbone, image_size, first_stage, style=style, heads=heads)


@functools.cache
def feature_shapes(
    *, backbone: str, image_size: int, first_stage: int | None = None
) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of the feature maps, finest first, as the network itself gives them.

    300 px with VGG16: 38, 19, 10, 5, 3, 1. 512 px: 64, 32, 16, 8, 4, 2, 1; with ResNet50 32 to 1.
    """
    _check_at_least(_SMALLEST_IMAGE, image_size=image_size)
    thin = ConvStyle(width=1 / 64)
    model = _assemble(backbone, image_size, first_stage, style=thin, heads=Heads((), 1))
    maps, _ = jax.eval_shape(
        lambda key, images: model.init_with_output(key, images, train=False, method=SSD.features),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32),
    )
    return tuple(x.shape[1:3] for x in maps)


def _assemble(
    backbone: str, image_size: int, first_stage: int | None, *, style: ConvStyle, heads: Heads
) -> SSD:
    _check_choice("backbone", backbone, _BACKBONES)
    if backbone == "resnet50":
        stage = 3 if first_stage is None else first_stage
        _check_choice("first_stage", stage, (1, 2, 3, 4))
        return SSD(ResNet50(style, first_stage=stage), ExtraLayers(_RESNET_EXTRAS, style), heads)
    if first_stage is not None:
        raise UserError(
            f'first_stage is {first_stage}, but belongs to backbone "resnet50"; '
            f'backbone "{backbone}" has none. Leave it out.'
        )
    if backbone == "small":
        return SSD(Small(style), ExtraLayers(_SMALL_EXTRAS, style), heads)
    layout = _SSD300_EXTRAS if image_size < _SSD512_FROM else _SSD512_EXTRAS
    return SSD(VGG16(style), ExtraLayers(layout, style), heads)


def _check_choice(word: str, got: object, choices: Collection) -> None:
    if got not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise UserError(f"{word} is {got!r}; expected one of {expected}.")


def _check_at_least(least: int, **words: int) -> None:
    for word, got in words.items():
        if not isinstance(got, int) or got < least:
            raise UserError(f"{word} is {got!r}; expected a whole number of at least {least}.")


def _check_levels(anchors_per_cell: tuple[int, ...], levels: int) -> None:
    if len(anchors_per_cell) != levels:
        raise UserError(
            f"anchors_per_cell has {len(anchors_per_cell)} entries {tuple(anchors_per_cell)}, but "
            f"the network has {levels} feature maps at this image size. Give one entry a map "
            "(see feature_shapes)."
        )
