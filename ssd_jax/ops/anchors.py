"""Anchors (the paper's default boxes) of the feature maps, as NumPy constants."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ssd_jax.errors import UserError

_FEW_RATIOS = (1.0, 2.0, 1 / 2)
_MANY_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)


class AnchorLevel(NamedTuple):
    """The anchors of one feature map.

    `scales` are the scale s of this level and the scale s' that follows it, as fractions of the
    image's height. `ratios` are width / height. `step` is the distance between two cells as a
    fraction of the image, None for 1 / (cells in a row or column). `offset` is the place of the
    centre in its cell.
    """

    scales: tuple[float, float]
    ratios: tuple[float, ...]
    step: float | None = None
    offset: float = 0.5

    @property
    def anchors_per_cell(self) -> int:
        """One for each ratio, and the larger one of scale sqrt(s s')."""
        return 1 + len(self.ratios)


def chained_levels(
    scales: Sequence[float], steps: Sequence[float] | None = None
) -> tuple[AnchorLevel, ...]:
    """Levels of which each one's s' is the next one's s; the last scale only closes the chain."""
    count = len(scales) - 1
    return tuple(
        AnchorLevel(
            scales=(float(scales[i]), float(scales[i + 1])),
            # The paper leaves out the ratios 3 and 1/3 on the first map and on the last two.
            ratios=_FEW_RATIOS if i == 0 or i >= count - 2 else _MANY_RATIOS,
            step=None if steps is None else steps[i],
        )
        for i in range(count)
    )


# Sizes and steps in pixels: https://github.com/weiliu89/caffe/blob/ssd/examples/ssd/ssd_pascal.py
# for 300; the SSD512 released with it (15 % on the second map, 7 % on conv4_3) for 512.
_PAPER_LEVELS = {
    (300, (38, 19, 10, 5, 3, 1)): chained_levels(
        [pixels / 300 for pixels in (30, 60, 111, 162, 213, 264, 315)],
        [pixels / 300 for pixels in (8, 16, 32, 64, 100, 300)],
    ),
    (512, (64, 32, 16, 8, 4, 2, 1)): chained_levels(
        [pixels / 512 for pixels in (35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6)],
        [pixels / 512 for pixels in (8, 16, 32, 64, 128, 256, 512)],
    ),
}


def even_levels(
    num_levels: int, *, smallest_scale: float = 0.1, largest_scale: float = 1.05
) -> tuple[AnchorLevel, ...]:
    """Levels for any network: the first at `smallest_scale`, the others evenly spaced.

    The others start at twice the smallest scale, and the step after the last one ends at
    `largest_scale`: with the default values and six levels these are the scales of SSD300.
    """
    if num_levels < 1 or not 0 < 2 * smallest_scale < largest_scale:
        raise UserError(
            f"anchor levels: got num_levels={num_levels}, smallest_scale={smallest_scale}, "
            f"largest_scale={largest_scale}; expected at least one level and "
            "0 < 2 * smallest_scale < largest_scale. Change the scales"
        )
    evenly = np.linspace(2 * smallest_scale, largest_scale, num_levels)
    return chained_levels([smallest_scale, *evenly])


def paper_levels(
    image_size: int, feature_shapes: Sequence[tuple[int, int]]
) -> tuple[AnchorLevel, ...]:
    """The paper's own levels for its SSD300 and SSD512; `even_levels` for every other network.

    The sides of the feature maps decide as well as the image size, because a ResNet at 300 pixels
    also has six maps, but of other strides.
    """
    sides = tuple(height for height, _ in feature_shapes)
    return _PAPER_LEVELS.get((image_size, sides)) or even_levels(len(sides))


def default_boxes(
    feature_shapes: Sequence[tuple[int, int]],
    levels: Sequence[AnchorLevel],
    *,
    clip: bool = False,
) -> Float[np.ndarray, "A 4"]:
    """All anchors as xyxy, ordered by map, row, column, and in a cell as `_cell_sizes` has them.

    `feature_shapes` are the (height, width) of the maps. Anchors reach out of the image unless
    they are clipped; the paper's are not.
    """
    if len(feature_shapes) != len(levels):
        raise UserError(
            f"anchors: got {len(levels)} levels for {len(feature_shapes)} feature maps "
            f"{list(feature_shapes)}; expected one level for each map"
        )
    boxes = np.concatenate(
        [_level_boxes(shape, level) for shape, level in zip(feature_shapes, levels, strict=True)]
    )
    return (np.clip(boxes, 0, 1) if clip else boxes).astype(np.float32)


def _level_boxes(shape: tuple[int, int], level: AnchorLevel) -> Float[np.ndarray, "A 4"]:
    height, width = shape
    y = (np.arange(height) + level.offset) * (level.step or 1 / height)
    x = (np.arange(width) + level.offset) * (level.step or 1 / width)
    centres = np.stack(np.meshgrid(x, y), axis=-1)[:, :, None, :]
    half = _cell_sizes(level, aspect=height / width) / 2
    return np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4)


def _cell_sizes(level: AnchorLevel, *, aspect: float) -> Float[np.ndarray, "k 2"]:
    """(width, height) of the anchors of a cell, in the order of Caffe and MXNet.

    First scale s, then sqrt(s s'), both of the first ratio; then s with each other ratio.
    `aspect`, height / width of the image, makes ratios hold in pixels: an anchor of ratio 1 is a
    square in the picture (MXNet's MultiBoxPrior).
    """
    scale, next_scale = level.scales
    first, *others = level.ratios
    scales = np.array([scale, np.sqrt(scale * next_scale), *[scale] * len(others)])
    root = np.sqrt([first, first, *others])
    return np.stack([scales * aspect * root, scales / root], axis=-1)
