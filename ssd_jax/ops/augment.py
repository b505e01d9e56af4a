"""Training augmentation on the device, for one image.

Colours are changed, the image is placed on a larger one, and a crop that still shows an object is
cut out, mirrored and stretched to the network's input: W. Liu et al., SSD: Single Shot MultiBox
Detector (https://arxiv.org/abs/1512.02325), sections 2.2 and 3.6. Details follow the authors' Caffe
code, or mxnet-ssd. All geometric changes are combined into one view of the image, so that it is
resampled only once.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssd_jax.ops.boxes import clip
from ssd_jax.ops.colour import (
    Distort,
    Distortion,
    Jitter,
    Shift,
    distort,
    jitter,
    sample_distortion,
    sample_shift,
)
from ssd_jax.ops.crop import (
    Crop,
    Expand,
    View,
    centre_inside,
    crop,
    expand,
    num_crop_draws,
    whole_picture,
)
from ssd_jax.ops.images import Canvas, Colour, Picture, resample
from ssd_jax.ops.interpolation import resample_by


class Augmentation(NamedTuple):
    """The augmentation of a training image; None omits a part. The defaults are the paper's.

    One of `interpolations` is drawn for each image. Unless it is ("linear",), colours are changed
    on the canvas instead of after resampling, which is cheaper.

    Windows are cut to whole pixels. `exact_boxes` False measures boxes in the uncut window, up to a
    pixel off, as the original algorithms do.
    """

    distort: Distort | None = Distort()
    jitter: Jitter | None = None
    expand: Expand | None = Expand()
    crop: Crop | None = Crop()
    flip: float = 0.5  # probability, left to right
    flip_vertical: float = 0.0  # probability; for images without an up and a down
    interpolations: tuple[str, ...] = ("linear",)
    exact_boxes: bool = True


class Parameters(NamedTuple):
    """All random choices for one image; `interpolation` is an index into the settings'."""

    view: View
    flip: Bool[Array, ""]
    flip_vertical: Bool[Array, ""]
    distortion: Distortion | None
    shift: Shift | None
    interpolation: Int[Array, ""]


def augment(
    key: Key[Array, ""],
    canvas: Canvas,
    extent: Int[Array, "2"],
    boxes: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    *,
    size: int,
    settings: Augmentation,
    fill: Colour,
) -> tuple[Picture, Float[Array, "G 4"], Bool[Array, "G"]]:
    """Augment one image; only `key` is random. Returns the image in 0..255, boxes, valid."""
    return apply_parameters(
        sample_parameters(key, extent, boxes, valid, settings=settings),
        canvas,
        extent,
        boxes,
        valid,
        size=size,
        settings=settings,
        fill=fill,
    )


def sample_parameters(
    key: Key[Array, ""],
    extent: Int[Array, "2"],
    boxes: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    *,
    settings: Augmentation,
) -> Parameters:
    """Draw the parameters of one image; boxes that are not valid are ignored."""
    # One draw, sliced: on a CPU every call of the generator takes most of a second to compile.
    counts = (2, 4, 9, 8, 1, num_crop_draws(settings.crop) if settings.crop is not None else 0)
    draws = jax.random.uniform(key, (sum(counts),))
    for_flip, for_expand, for_distort, for_jitter, for_interpolation, for_crop = jnp.split(
        draws, list(itertools.accumulate(counts[:-1]))
    )
    view = whole_picture(extent)
    exact = settings.exact_boxes
    if settings.expand is not None:
        view = expand(for_expand, view, settings.expand, exact_boxes=exact)
    if settings.crop is not None:
        objects = _in_pixels(boxes, extent)
        view = crop(for_crop, view, objects, valid, settings.crop, exact_boxes=exact)
    return Parameters(
        view=view,
        flip=for_flip[0] < settings.flip,
        flip_vertical=for_flip[1] < settings.flip_vertical,
        distortion=settings.distort and sample_distortion(for_distort, settings.distort),
        shift=settings.jitter and sample_shift(for_jitter, settings.jitter),
        interpolation=(for_interpolation[0] * len(settings.interpolations)).astype(jnp.int32),
    )


def apply_parameters(
    parameters: Parameters,
    canvas: Canvas,
    extent: Int[Array, "2"],
    boxes: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    *,
    size: int,
    settings: Augmentation,
    fill: Colour,
) -> tuple[Picture, Float[Array, "G 4"], Bool[Array, "G"]]:
    """Apply the parameters; nothing here is random.

    An object stays `valid` if its centre is in the frame; its box is clipped to the frame.
    """
    view, flip, flip_vertical, distortion, shift, interpolation = parameters

    def recolour(picture):
        picture = picture if distortion is None else distort(picture, distortion)
        return picture if shift is None else jitter(picture, shift)

    geometry = {"size": size, "fill": fill, "flip": flip, "flip_vertical": flip_vertical}
    if settings.interpolations == ("linear",):
        image = resample(canvas, extent, view.window, recolour=recolour, **geometry)
    else:
        canvas = recolour(canvas.astype(jnp.float32))
        largest = settings.expand.scale[1] if settings.expand is not None else 1
        image = resample_by(
            interpolation,
            canvas,
            extent,
            view.window,
            methods=settings.interpolations,
            longest=math.ceil(largest * max(canvas.shape[:2])),
            **geometry,
        )
    objects = _in_pixels(boxes, extent)
    kept = valid & centre_inside(objects, view.frame)
    left_top, right_bottom = view.frame[:2], view.frame[2:]
    boxes = clip((objects - jnp.tile(left_top, 2)) / jnp.tile(right_bottom - left_top, 2))
    mirrored = 1 - boxes[:, jnp.array([2, 3, 0, 1])]
    axes = jnp.tile(jnp.stack([flip, flip_vertical]), 2)
    return image, jnp.where(axes, mirrored, boxes), kept


def _in_pixels(boxes: Float[Array, "G 4"], extent: Int[Array, "2"]) -> Float[Array, "G 4"]:
    return boxes * jnp.tile(extent[::-1], 2)
