"""Training augmentation of the SSD paper, on the device, for one image.

Colours are distorted, the image is placed on a larger one, a crop that still shows an object is
cut out, mirrored and stretched to the network's input: W. Liu et al., SSD: Single Shot MultiBox
Detector (https://arxiv.org/abs/1512.02325), sections 2.2 and 3.6; details after the authors'
Caffe code. The geometry is one window on the picture, so an image is resampled once.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssd_jax.ops.boxes import clip, iou_matrix
from ssd_jax.ops.images import Canvas, Colour, Picture, resample

Range = tuple[float, float]


class Distort(NamedTuple):
    """Changes of colour; each of the four comes with `probability`, none is tied to another."""

    probability: float = 0.5
    brightness: float = 32.0  # largest shift, in grey levels
    contrast: Range = (0.5, 1.5)
    saturation: Range = (0.5, 1.5)
    hue: float = 18.0  # largest turn, in degrees, at most 180


class Expand(NamedTuple):
    """Placing the picture somewhere on an image of the fill, `scale` times as wide and high."""

    probability: float = 0.5
    scale: Range = (1.0, 4.0)


class Crop(NamedTuple):
    """Cutting out a part that shows an object.

    Each entry of `min_ious` has `trials` random crops. A crop is accepted if it holds the centre of
    an object and has at least that IoU with an object, the same or another; 0 asks for the centre
    only, which suits objects much smaller than the crops. Without objects any crop is accepted.
    The image is left whole or cut to the first crop that an entry accepted, all equally likely.
    """

    min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
    trials: int = 50
    scale: Range = (0.3, 1.0)  # square root of the share of the image's area
    aspect: Range = (0.5, 2.0)  # width / height in pixels; gives way where the image is too narrow


class Augmentation(NamedTuple):
    """What is done to a training image; None leaves a part out. The defaults are the paper's."""

    distort: Distort | None = Distort()
    expand: Expand | None = Expand()
    crop: Crop | None = Crop()
    flip: float = 0.5  # probability, left to right
    flip_vertical: float = 0.0  # probability; for pictures without an up and a down


class Distortion(NamedTuple):
    """One change of colour: shift in grey levels, two factors, turn in degrees, and the order."""

    brightness: Float[Array, ""]
    contrast: Float[Array, ""]
    saturation: Float[Array, ""]
    hue: Float[Array, ""]
    contrast_first: Bool[Array, ""]


class Parameters(NamedTuple):
    """All that chance decides about one image.

    `window` is xyxy in whole pixels of the picture, of positive size; it may reach outside.
    """

    window: Int[Array, "4"]
    flip: Bool[Array, ""]
    flip_vertical: Bool[Array, ""]
    distortion: Distortion | None


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
    """A random variant of one image, a function of `key` alone: image in 0..255, boxes, valid."""
    parameters = sample_parameters(key, extent, boxes, valid, settings=settings)
    return apply_parameters(parameters, canvas, extent, boxes, valid, size=size, fill=fill)


def sample_parameters(
    key: Key[Array, ""],
    extent: Int[Array, "2"],
    boxes: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    *,
    settings: Augmentation,
) -> Parameters:
    """Draw the parameters of one image; boxes that are not valid have no say."""
    crop = settings.crop
    crop_shape = (len(crop.min_ious), crop.trials, 4) if crop is not None else (0, 0, 4)
    # One draw, sliced: on a CPU every call of the generator costs most of a second to compile.
    counts = (2, 4, 9, 1, math.prod(crop_shape))
    draws = jax.random.uniform(key, (sum(counts),))
    for_flip, for_expand, for_distort, for_choice, for_crops = jnp.split(
        draws, list(itertools.accumulate(counts[:-1]))
    )
    window = jnp.concatenate([jnp.zeros_like(extent), extent[::-1]])
    if settings.expand is not None:
        window = _expanded(for_expand, window, settings.expand)
    if crop is not None:
        objects = _in_pixels(boxes, extent)
        for_crops = for_crops.reshape(crop_shape)
        window = _cropped(for_crops, for_choice[0], window, objects, valid, crop)
    return Parameters(
        window=window,
        flip=for_flip[0] < settings.flip,
        flip_vertical=for_flip[1] < settings.flip_vertical,
        distortion=None if settings.distort is None else _drawn(for_distort, settings.distort),
    )


def apply_parameters(
    parameters: Parameters,
    canvas: Canvas,
    extent: Int[Array, "2"],
    boxes: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    *,
    size: int,
    fill: Colour,
) -> tuple[Picture, Float[Array, "G 4"], Bool[Array, "G"]]:
    """Carry the parameters out; nothing here is random.

    An object stays `valid` if its centre lies in the window; its box is clipped to the window.
    """
    window, flip, flip_vertical, distortion = parameters
    image = resample(
        canvas,
        extent,
        window,
        size=size,
        fill=fill,
        flip=flip,
        flip_vertical=flip_vertical,
        distort=None if distortion is None else lambda picture: distort(picture, distortion),
    )
    objects = _in_pixels(boxes, extent)
    kept = valid & _centre_inside(objects, window)
    left_top = jnp.tile(window[:2], 2)
    boxes = clip((objects - left_top) / jnp.tile(window[2:] - window[:2], 2))
    mirrored = 1 - boxes[:, jnp.array([2, 3, 0, 1])]
    axes = jnp.tile(jnp.stack([flip, flip_vertical]), 2)
    return image, jnp.where(axes, mirrored, boxes), kept


def distort(picture: Picture, distortion: Distortion) -> Picture:
    """Change the colours of an image in grey levels 0..255, which every step saturates."""
    brightness, contrast, saturation, hue, contrast_first = distortion
    before, after = jnp.where(contrast_first, contrast, 1), jnp.where(contrast_first, 1, contrast)
    picture = _saturate(_saturate(picture + brightness) * before)
    picture = _shift_hue_and_saturation(picture, hue, saturation)
    return _saturate(picture * after)


def _shift_hue_and_saturation(
    picture: Picture, hue: Float[Array, ""], saturation: Float[Array, ""]
) -> Picture:
    """To HSV, with hue in sixths of the circle, and back; without the modulo, which is slow."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    red_leads, green_leads = value == red, value == green
    lead = jnp.where(red_leads, 0.0, jnp.where(green_leads, 2.0, 4.0))
    lean = jnp.where(
        red_leads, green - blue, jnp.where(green_leads, blue - red, red - green)
    ) / jnp.where(chroma > 0, chroma, 1)
    angle = lead + lean + hue / 60
    angle = jnp.where(angle < 0, angle + 6, jnp.where(angle >= 6, angle - 6, angle))
    # Saturation is chroma / value, so it reaches 1 where the chroma equals the value.
    chroma = jnp.minimum(chroma * saturation, value)
    # A channel is full up to a sixth of the circle away from its own hue, empty from a third on.
    distance = jnp.abs(angle[..., None] - jnp.array([0.0, 2.0, 4.0]))
    distance = jnp.minimum(distance, 6 - distance)
    return value[..., None] - chroma[..., None] * jnp.clip(distance - 1, 0, 1)


def _saturate(picture: Picture) -> Picture:
    return jnp.clip(picture, 0, 255)


def _drawn(draws: Float[Array, "9"], settings: Distort) -> Distortion:
    happens = draws[:4] < settings.probability
    brightness, hue = settings.brightness, settings.hue
    return Distortion(
        brightness=jnp.where(happens[0], _between(draws[4], (-brightness, brightness)), 0),
        contrast=jnp.where(happens[1], _between(draws[5], settings.contrast), 1),
        saturation=jnp.where(happens[2], _between(draws[6], settings.saturation), 1),
        hue=jnp.where(happens[3], _between(draws[7], (-hue, hue)), 0),
        contrast_first=draws[8] < 0.5,
    )


def _expanded(
    draws: Float[Array, "4"], window: Int[Array, "4"], settings: Expand
) -> Int[Array, "4"]:
    happens = draws[0] < settings.probability
    scale = jnp.where(happens, _between(draws[1], settings.scale), 1)
    size = window[2:]
    expanded_size = _whole(scale * size)
    offset = _whole(draws[2:] * (expanded_size - size))
    return jnp.concatenate([-offset, expanded_size - offset])


def _cropped(
    draws: Float[Array, "samplers trials 4"],
    choice: Float[Array, ""],
    window: Int[Array, "4"],
    objects: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    settings: Crop,
) -> Int[Array, "4"]:
    """Pick evenly among the window as it is and the first accepted crop of each sampler."""
    crops = _random_crops(draws, window, settings)
    flat = crops.reshape(-1, 4)
    iou = iou_matrix(flat.astype(jnp.float32), objects).max(axis=1, where=valid, initial=0)
    centred = (valid & jax.vmap(_centre_inside, (None, 0))(objects, flat)).any(axis=1)
    min_iou = jnp.asarray(settings.min_ious)[:, None]
    accepted = (iou.reshape(crops.shape[:2]) >= min_iou) & centred.reshape(crops.shape[:2])
    accepted |= ~valid.any()

    first = jnp.argmax(accepted, axis=1)
    candidates = jnp.concatenate([window[None], crops[jnp.arange(len(first)), first]])
    possible = jnp.concatenate([jnp.ones(1, bool), accepted.any(axis=1)])
    rank = jnp.floor(choice * possible.sum())  # of the pick among the possible, from 0
    return candidates[jnp.argmax(jnp.cumsum(possible) > rank)]


def _random_crops(
    draws: Float[Array, "samplers trials 4"], window: Int[Array, "4"], settings: Crop
) -> Int[Array, "samplers trials 4"]:
    size = window[2:] - window[:2]
    scale = _between(draws[..., 0], settings.scale)
    # Width and height as shares of the image's are scale * stretch and scale / stretch, so their
    # aspect there is stretch squared; beyond scale squared either way a side would stick out.
    narrowest, widest = (
        jnp.clip(aspect * size[1] / size[0], scale**2, 1 / scale**2) for aspect in settings.aspect
    )
    stretch = jnp.sqrt(_between(draws[..., 1], (narrowest, widest)))
    shares = jnp.stack([scale * stretch, scale / stretch], axis=-1)
    crop_size = jnp.clip(_whole(shares * size), 1, size)
    corner = window[:2] + _whole(draws[..., 2:] * (size - crop_size))
    return jnp.concatenate([corner, corner + crop_size], axis=-1)


def _in_pixels(boxes: Float[Array, "G 4"], extent: Int[Array, "2"]) -> Float[Array, "G 4"]:
    return boxes * jnp.tile(extent[::-1], 2)


def _centre_inside(objects: Float[Array, "G 4"], window: Int[Array, "4"]) -> Bool[Array, "G"]:
    centre = (objects[:, :2] + objects[:, 2:]) / 2
    return ((centre >= window[:2]) & (centre <= window[2:])).all(axis=-1)


def _between(draws: Float[Array, "..."], bounds: tuple) -> Float[Array, "..."]:
    low, high = bounds
    return low + draws * (high - low)


def _whole(pixels: Float[Array, "..."]) -> Int[Array, "..."]:
    return jnp.round(pixels).astype(jnp.int32)
