"""The Single Shot MultiBox Detector (arXiv:1512.02325): backbone, extra layers, heads.

How the parts of a run fit together:

    shapes = feature_shapes(backbone="vgg16", image_size=300)      # ((38, 38), (19, 19), ...)
    ...one anchor level for each shape; from them the anchors per cell...
    model = build_model(backbone="vgg16", image_size=300, num_classes=20, anchors_per_cell=...)
    variables = init_variables(model, image_size=300, seed=0)
    box_deltas, class_logits = model.apply(variables, images, train=False)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssd_jax.errors import UserError, check_choice
from ssd_jax.models.convolution import convolution
from ssd_jax.models.extras import ExtraLayers, mxnet_extras, paper_extras
from ssd_jax.models.fpn import FeaturePyramid
from ssd_jax.models.layers import TRACED_INIT, ConvStyle
from ssd_jax.models.own import check_maps, is_own, own_backbone
from ssd_jax.models.resnet import ResNet50
from ssd_jax.models.resnet_v2 import ResNet50V2
from ssd_jax.models.small import Small
from ssd_jax.models.vgg import VGG16

# resnet50 is v1.5, with the stride of a block in its 3x3 convolution.
_RESNETS = {
    "resnet50": ResNet50,
    "resnet50_v1": functools.partial(ResNet50, stride_first=True),
    "resnet50_v2": ResNet50V2,
}
_EXTRAS = {"paper": paper_extras, "mxnet": mxnet_extras}
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_BATCH_NORMS = ("none", "frozen", "batch")
_ACTIVATIONS = ("softmax", "sigmoid")
# Smaller images leave maps of at most 2x2 and 1x1, too small for detection.
_SMALLEST_IMAGE = 64


class Heads(nn.Module):
    """Two 3x3 convolutions on each feature map; anchors run over map, y, x, anchor of the cell.

    `class_activation` says how callers turn logits into scores: "softmax" or "sigmoid".
    """

    anchors_per_cell: tuple[int, ...]
    num_classes: int
    dtype: Any = jnp.float32
    class_activation: str = "softmax"

    @nn.compact
    def __call__(
        self, features: tuple[Float[Array, "B _ _ _"], ...]
    ) -> tuple[Float[Array, "B A 4"], Float[Array, "B A {self.num_classes}+1"]]:
        """Predict box deltas and class logits, in float32, with background at channel 0."""
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
        return nn.Conv(
            channels,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=TRACED_INIT,
            conv_general_dilated=convolution,
            name=name,
        )


class SSD(nn.Module):
    """The network: images -> (box_deltas, class_logits) of all anchors."""

    backbone: nn.Module
    extras: ExtraLayers
    heads: Heads
    fpn: FeaturePyramid | None = None

    def features(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """The feature maps that the heads use, finest first."""
        maps = check_maps(self.backbone, self.backbone(images, train=train), images)
        # An image larger than the network was built for could give maps that have no heads.
        heads = len(self.heads.anchors_per_cell)
        coarser = self.extras(maps[-1], train=train, at_most=heads - len(maps) if heads else None)
        maps = (*maps, *coarser)
        return maps if self.fpn is None else self.fpn(maps, train=train)

    def __call__(
        self, images: Float[Array, "B S S 3"], *, train: bool
    ) -> tuple[Float[Array, "B A 4"], Float[Array, "B A _"]]:
        """Predict from normalised images, NHWC."""
        return self.heads(self.features(images, train=train))


def build_model(
    *,
    backbone: str,
    num_classes: int,
    image_size: int,
    anchors_per_cell: tuple[int, ...],
    extras: str = "paper",
    width: float = 1.0,
    dtype: str = "float32",
    batch_norm: str = "none",
    batch_norm_group: int = 0,
    batch_norm_epsilon: float = 1e-5,
    batch_norm_momentum: float = 0.9,
    l2_epsilon: float = 1e-10,
    first_stage: int | None = None,
    fpn_channels: int = 0,
    class_activation: str = "softmax",
    batch_axis: str | None = None,
) -> SSD:
    """Build the network; `num_classes` does not count the background.

    `backbone` is the name of a built-in one, or "package.module:Class" (`models.own`).
    `anchors_per_cell` has one entry for each of `feature_shapes`. `extras` are the layers after
    the backbone: "paper" (GluonCV's for a ResNet) or "mxnet" (mxnet-ssd's). `width` multiplies
    all channels. `batch_norm` is "none" (VGG16 as published), "frozen" or "batch", the latter with
    statistics over groups of `batch_norm_group` images (0: the whole batch). `l2_epsilon` is for
    VGG16's L2 normalisation (GluonCV: 1e-5). `first_stage` is the first stage of a ResNet with
    detections (None: 3, stride 16). `fpn_channels`, if not 0, fuses the maps to so many channels
    before the heads (`models.fpn`). `class_activation` is that of `Heads`. `batch_axis` is needed
    to train inside `jax.shard_map`; see `models.layers.GroupedBatchNorm`.
    """
    check_choice("batch_norm", batch_norm, _BATCH_NORMS)
    if backbone in _RESNETS and batch_norm == "none":
        raise UserError(
            f'backbone "{backbone}" does not train with batch_norm "none". Set batch_norm to '
            '"batch", or to "frozen" with pretrained weights.'
        )
    check_choice("dtype", dtype, _DTYPES)
    check_choice("class_activation", class_activation, _ACTIVATIONS)
    shapes = feature_shapes(
        backbone=backbone, image_size=image_size, extras=extras, first_stage=first_stage
    )
    _check_levels(anchors_per_cell, len(shapes))
    style = ConvStyle(
        width=width,
        dtype=_DTYPES[dtype],
        bias=backbone not in _RESNETS,
        batch_norm=batch_norm,
        batch_norm_group=batch_norm_group,
        batch_norm_epsilon=batch_norm_epsilon,
        batch_norm_momentum=batch_norm_momentum,
        batch_axis=batch_axis,
    )
    return SSD(
        _backbone(backbone, style, first_stage=first_stage, l2_epsilon=l2_epsilon),
        _EXTRAS[extras](backbone, image_size, style),
        Heads(
            tuple(anchors_per_cell),
            num_classes,
            dtype=_DTYPES[dtype],
            class_activation=class_activation,
        ),
        FeaturePyramid(style, style.channels(fpn_channels)) if fpn_channels else None,
    )


def feature_shapes(
    *, backbone: str, image_size: int, extras: str = "paper", first_stage: int | None = None
) -> tuple[tuple[int, int], ...]:
    """The sizes (height, width) of the feature maps, finest first, traced from the network.

    300 px with VGG16: 38, 19, 10, 5, 3, 1. 512 px: 64, 32, 16, 8, 4, 2, 1; with ResNet50 32 to 1.
    """
    if not isinstance(image_size, int) or image_size < _SMALLEST_IMAGE:
        raise UserError(
            f"image_size is {image_size!r}; expected a whole number of at least {_SMALLEST_IMAGE}."
        )
    check_choice("extras", extras, _EXTRAS)
    thin = ConvStyle(width=1 / 64)
    model = SSD(
        _backbone(backbone, thin, first_stage=first_stage),
        _EXTRAS[extras](backbone, image_size, thin),
        Heads((), 1),
    )
    return map_shapes(model, image_size)


@functools.cache
def map_shapes(model: SSD, image_size: int) -> tuple[tuple[int, int], ...]:
    """The `feature_shapes` of a model for any image size; a small one may give fewer maps."""
    maps, _ = jax.eval_shape(
        lambda key, images: model.init_with_output(key, images, train=False, method=SSD.features),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32),
    )
    return tuple(x.shape[1:3] for x in maps)


def _backbone(
    name: str, style: ConvStyle, *, first_stage: int | None, l2_epsilon: float = 1e-10
) -> nn.Module:
    if not is_own(name):
        check_choice("backbone", name, (*_RESNETS, "vgg16", "small"))
    if name in _RESNETS:
        stage = 3 if first_stage is None else first_stage
        check_choice("first_stage", stage, (1, 2, 3, 4))
        return _RESNETS[name](style, first_stage=stage)
    if first_stage is not None:
        raise UserError(
            f"config.model.first_stage: got {first_stage}, but only a ResNet has stages; "
            f'the backbone is "{name}". Leave it out.'
        )
    if is_own(name):
        return own_backbone(name, style)
    return Small(style) if name == "small" else VGG16(style, l2_epsilon=l2_epsilon)


def _check_levels(anchors_per_cell: tuple[int, ...], levels: int) -> None:
    if len(anchors_per_cell) != levels:
        raise UserError(
            f"anchors_per_cell has {len(anchors_per_cell)} entries {tuple(anchors_per_cell)}, but "
            f"the network has {levels} feature maps at this image size. Give one entry per map "
            "(see feature_shapes)."
        )
