"""Builds the network of a config, its anchors and its prediction function.

Training needs more parts (`experiment.py`), which a program that only predicts need not import.
"""

from typing import NamedTuple

import numpy as np
from flax import linen as nn
from jaxtyping import Float
from ml_collections import ConfigDict

from ssd_jax.errors import UserError
from ssd_jax.models.ssd import build_model, feature_shapes, map_shapes
from ssd_jax.ops.anchors import (
    AnchorLevel,
    default_boxes,
    enlarged_image_levels,
    gluoncv_levels,
    levels_of_scales,
    mxnet_legacy_levels,
    mxnet_levels,
    paper_levels,
)
from ssd_jax.predict import make_predict
from ssd_jax.sharding import BATCH_AXIS

_LEVELS = {
    "paper": paper_levels,
    "gluoncv": gluoncv_levels,
    "mxnet": mxnet_levels,
    "mxnet_legacy": mxnet_legacy_levels,
}


class Network(NamedTuple):
    """A model and the anchors of its outputs."""

    model: nn.Module
    anchors: Float[np.ndarray, "A 4"]


def build_network(config: ConfigDict, num_classes: int) -> Network:
    """The network of a config: the feature maps determine the anchors, and these the heads."""
    shapes = _shapes(config)
    levels = _levels(config, shapes)
    model = build_model(
        **config.model,
        num_classes=num_classes,
        anchors_per_cell=tuple(level.anchors_per_cell for level in levels),
        batch_axis=BATCH_AXIS,
    )
    return Network(model, default_boxes(shapes, levels))


def network_warnings(config: ConfigDict, network: Network) -> list[str]:
    """Warnings about layers that are likely to be a mistake."""
    images = config.model.batch_norm_group or config.batch_size
    one_value = images == 1 and map_shapes(network.model, config.model.image_size)[-1] == (1, 1)
    if config.model.batch_norm != "batch" or not one_value:
        return []
    larger = "--config.model.batch_norm_group=8, which must divide the batch, or "
    return [
        "BatchNorm over one image has a single value per channel on the last feature map, hence no "
        "variance: the layer learns nothing, and evaluations divide by almost 0. Use "
        f"{larger if config.batch_size > 1 else ''}--config.model.batch_norm=frozen"
    ]


def anchors_at(config: ConfigDict, network: Network, image_size: int) -> Float[np.ndarray, "_ 4"]:
    """The network's anchors on images of another size, with the same sizes in pixels.

    What a network has learned about objects of a size in pixels then holds for any image size.
    """
    own_size = config.model.image_size
    if image_size == own_size:
        return network.anchors
    levels = _levels(config, _shapes(config))
    shapes = map_shapes(network.model, image_size)
    if len(shapes) < len(levels):
        raise UserError(
            f"image size {image_size}: the network for config.model.image_size {own_size} has "
            f"{len(levels)} feature maps, but an image of this size gives {len(shapes)}. Remove "
            "the size from config.augment.image_sizes and config.detect.image_sizes."
        )
    return default_boxes(shapes, enlarged_image_levels(levels, image_size / own_size))


def build_predict(config: ConfigDict, network: Network):
    """`predict(variables, canvas, extent)`, not yet jitted."""
    settings = config.detect.to_dict()
    image_sizes = settings.pop("image_sizes") or (config.model.image_size,)
    return make_predict(
        network.model,
        {size: anchors_at(config, network, size) for size in image_sizes},
        mean=config.preprocess.mean,
        std=config.preprocess.std,
        **settings,
    )


def _shapes(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    return feature_shapes(
        backbone=config.model.backbone,
        image_size=config.model.image_size,
        extras=config.model.extras,
        first_stage=config.model.first_stage,
    )


def _levels(config: ConfigDict, shapes: tuple[tuple[int, int], ...]) -> tuple[AnchorLevel, ...]:
    if not config.anchors.scales:
        return _LEVELS[config.anchors.layout](config.model.image_size, shapes)
    if len(config.anchors.scales) != len(shapes) + 1:
        raise UserError(
            f"config.anchors.scales: got {len(config.anchors.scales)} scales, expected "
            f"{len(shapes) + 1}: one for each feature map {list(shapes)}, and one more for the "
            "larger square of the last map."
        )
    return levels_of_scales(config.anchors.scales, config.model.image_size, shapes)
