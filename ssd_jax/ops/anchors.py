"""Anchors (the paper's default boxes) of the feature maps, as NumPy constants."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from ssd_jax.errors import UserError

_FEW_RATIOS = (1.0, 2.0, 1 / 2)
_MANY_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)


class AnchorLevel(NamedTuple):
    """The anchors of one feature map, described as in MXNet's operator MultiBoxPrior.

    A cell has every size at the first ratio, then the first size at every other ratio. `sizes` are
    fractions of the image's height, `ratios` width / height. `steps` are the distances (y, x)
    between cells as fractions of the image, None for 1 / (cells in a column, cells in a row);
    `offsets` is the position (y, x) of the centre in its cell.
    """

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    steps: tuple[float, float] | None = None
    offsets: tuple[float, float] = (0.5, 0.5)

    @property
    def anchors_per_cell(self) -> int:
        """One for each size and each ratio, minus one because the first of both is shared."""
        return len(self.sizes) + len(self.ratios) - 1


def chained_levels(
    scales: Sequence[float], steps: Sequence[float] | None = None
) -> tuple[AnchorLevel, ...]:
    """Levels with sizes s and sqrt(s s'), where s' is the next scale; the last gives no level."""
    sizes = [(s, (s * following) ** 0.5) for s, following in itertools.pairwise(scales)]
    return _levels(sizes, steps)


def _levels(
    sizes: Sequence[tuple[float, float]], steps: Sequence[float] | None
) -> tuple[AnchorLevel, ...]:
    """The ratios of each map; the paper omits 3 and 1/3 on the first map and the last two."""
    return tuple(
        AnchorLevel(
            sizes=tuple(map(float, pair)),
            ratios=_FEW_RATIOS if i == 0 or i >= len(sizes) - 2 else _MANY_RATIOS,
            steps=None if steps is None else (steps[i], steps[i]),
        )
        for i, pair in enumerate(sizes)
    )


# The sides of the maps distinguish networks with one image size: a ResNet at 300 pixels has six
# maps too, but with other strides.
_VGG_300 = (300, (38, 19, 10, 5, 3, 1))
_VGG_512 = (512, (64, 32, 16, 8, 4, 2, 1))
_VGG_512_MXNET = (512, (64, 32, 16, 8, 4, 2, 2))
_RESNET_512 = (512, (32, 16, 8, 4, 2, 1))
# In pixels; the steps of other networks follow from the sizes of their maps.
_STEPS = {
    _VGG_300: (8, 16, 32, 64, 100, 300),
    _VGG_512: (8, 16, 32, 64, 128, 256, 512),
    _VGG_512_MXNET: (8, 16, 32, 64, 128, 256, 512),
}
# Scales in pixels: https://github.com/weiliu89/caffe/blob/ssd/examples/ssd/ssd_pascal.py for 300;
# the SSD512 released with it (15 % on the second map, 7 % on conv4_3) for 512.
_PAPER_SCALES = {
    _VGG_300: (30, 60, 111, 162, 213, 264, 315),
    _VGG_512: (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
}
# gluoncv/model_zoo/ssd/presets.py, where it differs from the paper.
_GLUONCV_SCALES = {
    _VGG_512: (51.2, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
    _RESNET_512: (51.2, 102.4, 189.4, 276.4, 363.52, 450.6, 492),
}
# The literals of mxnet-ssd's symbol/legacy_vgg16_ssd_300.py and _512.py, by number of maps.
_MXNET_LEGACY_SIZES = {
    6: ((0.1, 0.141), (0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961)),
    7: (
        (0.07, 0.1025), (0.15, 0.2121), (0.3, 0.3674), (0.45, 0.5196), (0.6, 0.6708),
        (0.75, 0.8216), (0.9, 0.9721),
    ),
}  # fmt: skip


def even_levels(num_levels: int) -> tuple[AnchorLevel, ...]:
    """Levels for any network: scale 0.1, then evenly spaced scales from 0.2 to 1.05.

    With six levels these are the scales of SSD300.
    """
    return chained_levels([0.1, *np.linspace(0.2, 1.05, num_levels)])


def paper_levels(
    image_size: int, feature_shapes: Sequence[tuple[int, int]]
) -> tuple[AnchorLevel, ...]:
    """The paper's own levels for its SSD300 and SSD512; `even_levels` for every other network."""
    published = _published(_PAPER_SCALES, image_size, feature_shapes)
    return published or even_levels(len(feature_shapes))


def gluoncv_levels(
    image_size: int, feature_shapes: Sequence[tuple[int, int]]
) -> tuple[AnchorLevel, ...]:
    """GluonCV's levels for its VOC networks at 512 pixels; `paper_levels` for all others."""
    published = _published(_GLUONCV_SCALES, image_size, feature_shapes)
    return published or paper_levels(image_size, feature_shapes)


def mxnet_levels(
    image_size: int, feature_shapes: Sequence[tuple[int, int]]
) -> tuple[AnchorLevel, ...]:
    """Levels of mxnet-ssd, the reference behind SageMaker: symbol/symbol_factory.py, `get_scales`.

    The second map has 15 % of the image if there are seven or more maps, else 20 %; the last has at
    most 90 %; those between have whole percents; the first has half of the second, rounded down.
    """
    count = len(feature_shapes)
    if count < 3:
        raise _wrong_count(feature_shapes, "at least 3")
    first, last = (15 if count >= 7 else 20), 90
    step = (last - first) // (count - 2)
    percents = [first // 2, *(first + i * step for i in range(count))]
    return levels_of_scales([percent / 100 for percent in percents], image_size, feature_shapes)


def mxnet_legacy_levels(
    image_size: int, feature_shapes: Sequence[tuple[int, int]]
) -> tuple[AnchorLevel, ...]:
    """The rounded sizes of mxnet-ssd's Caffe-compatible VGG16, for six or seven maps only."""
    count = len(feature_shapes)
    if count not in _MXNET_LEGACY_SIZES:
        raise _wrong_count(feature_shapes, "6 or 7")
    return _levels(_MXNET_LEGACY_SIZES[count], _steps(_network(image_size, feature_shapes)))


def _wrong_count(feature_shapes: Sequence[tuple[int, int]], expected: str) -> UserError:
    return UserError(
        f"config.anchors.layout: of mxnet-ssd, got {len(feature_shapes)} feature maps "
        f"{list(feature_shapes)}; expected {expected}. Choose other levels or a larger image."
    )


def _network(
    image_size: int, feature_shapes: Sequence[tuple[int, int]]
) -> tuple[int, tuple[int, ...]]:
    return image_size, tuple(height for height, _ in feature_shapes)


def _steps(network: tuple[int, tuple[int, ...]]) -> list[float] | None:
    return [step / network[0] for step in _STEPS[network]] if network in _STEPS else None


def _published(
    scales_in_pixels: Mapping[tuple[int, tuple[int, ...]], Sequence[float | int]],
    image_size: int,
    feature_shapes: Sequence[tuple[int, int]],
) -> tuple[AnchorLevel, ...] | None:
    """The levels of a published network; None for other networks."""
    scales = scales_in_pixels.get(_network(image_size, feature_shapes))
    return scales and levels_of_scales(
        [scale / image_size for scale in scales], image_size, feature_shapes
    )


def levels_of_scales(
    scales: Sequence[float], image_size: int, feature_shapes: Sequence[tuple[int, int]]
) -> tuple[AnchorLevel, ...]:
    """`chained_levels` with the centres that the published networks have on these maps.

    SSD300 for COCO differs only in its scales (`ssd_coco.py` of the paper's authors).
    """
    return chained_levels(scales, _steps(_network(image_size, feature_shapes)))


def enlarged_image_levels(levels: Sequence[AnchorLevel], factor: float) -> tuple[AnchorLevel, ...]:
    """The same anchors in pixels, for an image with `factor` times the side.

    The cells of a map divide the image evenly. Where the strides divide the side, their centres are
    the same too; on the coarsest maps they may not be.
    """
    return tuple(
        level._replace(sizes=tuple(size / factor for size in level.sizes), steps=None)
        for level in levels
    )


def default_boxes(
    feature_shapes: Sequence[tuple[int, int]],
    levels: Sequence[AnchorLevel],
) -> Float32[np.ndarray, "A 4"]:
    """All anchors as xyxy, ordered by map, row, column, and within a cell as in `AnchorLevel`.

    `feature_shapes` are the (height, width) of the maps. As in the paper, anchors may extend beyond
    the image and are not clipped. Equal to MXNet's MultiBoxPrior in every bit.
    """
    if len(feature_shapes) != len(levels):
        raise UserError(
            f"anchors: got {len(levels)} levels for {len(feature_shapes)} feature maps "
            f"{list(feature_shapes)}; expected one level for each map"
        )
    return np.concatenate(
        [_level_boxes(shape, level) for shape, level in zip(feature_shapes, levels, strict=True)]
    )


def _level_boxes(shape: tuple[int, int], level: AnchorLevel) -> Float32[np.ndarray, "A 4"]:
    steps = level.steps or (None, None)
    y, x = (_centres(*axis) for axis in zip(shape, steps, level.offsets, strict=True))
    centres = np.stack(np.meshgrid(x, y), axis=-1)[:, :, None, :]
    half = _half_sizes(shape, level)
    return np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4)


def _centres(cells: int, step: float | None, offset: float) -> Float32[np.ndarray, "cells"]:
    distance = np.float32(1) / np.float32(cells) if step is None else np.float32(step)
    return (np.arange(cells, dtype=np.float32) + np.float32(offset)) * distance


def _half_sizes(shape: tuple[int, int], level: AnchorLevel) -> Float32[np.ndarray, "k 2"]:
    """Half (width, height) of the anchors of a cell.

    A map has the aspect ratio of its image, so the factor height / width makes ratios hold in
    pixels: an anchor of ratio 1 is a square in the image.
    """
    height, width = np.float32(shape)
    first, *others = level.ratios
    sizes = np.array([*level.sizes, *level.sizes[:1] * len(others)], np.float32)
    roots = np.sqrt(np.array([first] * len(level.sizes) + others, np.float32))
    return np.stack([sizes * height / width * roots / 2, sizes / roots / 2], axis=-1)
