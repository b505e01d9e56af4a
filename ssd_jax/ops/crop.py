"""Random expansion of an image, and random crops that keep an object.

One sampler with options serves both the SSD paper (after the authors' Caffe code) and mxnet-ssd
(after MXNet's src/io/image_det_aug_default.cc, release 1.9.1). All units are pixels of the image.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ssd_jax.ops.boxes import iou_matrix
from ssd_jax.ops.colour import between

Range = tuple[float, float]


class Expand(NamedTuple):
    """Placing the image at random on a filled one that is `scale` times as wide and high."""

    probability: float = 0.5
    scale: Range = (1.0, 4.0)
    minimum: float = 1.0  # below this scale the image is left unchanged


class Crop(NamedTuple):
    """Cropping a part that shows an object.

    Each entry of `min_ious` is a sampler of up to `trials` random crops. A crop is accepted if it
    contains the centre of an object and has at least that IoU with this or another object; 0
    requires only the centre, which suits objects much smaller than the crops. Without objects any
    crop is accepted. With `choice` "even" the choice is uniform among the whole image and the first
    accepted crop of each sampler. With "first" the samplers are tried in random order until one
    accepts; if none does, the image is left whole.

    `iou_binds` False requires only the centre, whatever `min_ious` says. MXNet did so until its
    condition was fixed: it checked the IoU only if every one of its six limits was set, which
    mxnet-ssd never does. In release 1.9.1 the IoU is checked.
    """

    min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
    trials: int = 50
    scale: Range = (0.3, 1.0)  # square root of the fraction of the image's area
    aspect: Range = (0.5, 2.0)  # width / height in pixels; limited if the image is too narrow
    probability: float = 1.0  # of trying to crop
    choice: Literal["even", "first"] = "even"
    iou_binds: bool = True


class View(NamedTuple):
    """A part of the image, xyxy in its pixels; it may extend outside.

    `window` is the part that is resampled. `frame` is the one in which boxes are measured: the
    same, or the window before it was cut to whole pixels.
    """

    window: Int[Array, "*N 4"]
    frame: Float[Array, "*N 4"]


def whole_picture(extent: Int[Array, "2"]) -> View:
    """The initial view for `expand` and `crop`; `extent` is (height, width)."""
    window = jnp.concatenate([jnp.zeros_like(extent), extent[::-1]])
    return View(window, window.astype(jnp.float32))


def expand(draws: Float[Array, "4"], view: View, settings: Expand, *, exact_boxes: bool) -> View:
    """Expand a view, by four uniform draws in [0, 1)."""
    scale = between(draws[1], settings.scale)
    happens = (draws[0] < settings.probability) & (scale >= settings.minimum)
    size = view.window[2:] - view.window[:2]
    before = draws[2:] * (scale - 1)  # in widths and heights of the view
    margins = _whole(before * size), _whole((scale - 1 - before) * size)
    window = view.window + jnp.concatenate([-margins[0], margins[1]])
    frame = view.frame + jnp.concatenate([-before, scale - 1 - before]) * jnp.tile(size, 2)
    expanded = _view(window, frame, exact_boxes)
    return jax.tree.map(lambda new, old: jnp.where(happens, new, old), expanded, view)


def num_crop_draws(settings: Crop) -> int:
    """The number of uniform draws that `crop` needs."""
    return 2 + len(settings.min_ious) * (1 + 4 * settings.trials)


def crop(
    draws: Float[Array, "_"],
    view: View,
    objects: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    settings: Crop,
    *,
    exact_boxes: bool,
) -> View:
    """Crop a view, by uniform draws in [0, 1); objects are in pixels, invalid ones are ignored."""
    samplers = len(settings.min_ious)
    happens, choice, for_order, for_crops = jnp.split(draws, [1, 2, 2 + samplers])
    for_crops = for_crops.reshape(samplers, settings.trials, 4)
    crops = _random_crops(for_crops, view, settings, exact_boxes)
    accepted = _accepted(crops.frame.reshape(-1, 4), objects, valid, settings)
    if settings.choice == "first":
        found, sampler, trial = _first(for_order, accepted)
    else:
        found, sampler, trial = _even(choice[0], accepted)
    found &= happens[0] < settings.probability
    return jax.tree.map(lambda new, old: jnp.where(found, new[sampler, trial], old), crops, view)


def centre_inside(objects: Float[Array, "G 4"], frame: Float[Array, "4"]) -> Bool[Array, "G"]:
    """Whether each object's centre is in the frame, including its edges."""
    centre = (objects[:, :2] + objects[:, 2:]) / 2
    return ((centre >= frame[:2]) & (centre <= frame[2:])).all(axis=-1)


def _random_crops(
    draws: Float[Array, "samplers trials 4"], view: View, settings: Crop, exact_boxes: bool
) -> View:
    size = view.window[2:] - view.window[:2]
    scale = between(draws[..., 0], settings.scale)
    # As fractions of the image, width and height are scale * stretch and scale / stretch, so their
    # aspect is stretch squared; outside [scale^2, 1 / scale^2] a side would exceed the image.
    narrowest, widest = (aspect * size[1] / size[0] for aspect in settings.aspect)
    bounds = jnp.maximum(narrowest, scale**2), jnp.minimum(widest, 1 / scale**2)
    stretch = jnp.sqrt(between(draws[..., 1], bounds))
    shares = jnp.minimum(jnp.stack([scale * stretch, scale / stretch], axis=-1), 1)
    corner = draws[..., 2:] * (1 - shares)
    left_top = view.window[:2] + _whole(corner * size)
    window = jnp.concatenate([left_top, left_top + jnp.maximum(_whole(shares * size), 1)], axis=-1)
    frame_size = view.frame[2:] - view.frame[:2]
    frame = view.frame[:2] + jnp.stack([corner, corner + shares], axis=-2) * frame_size
    return _view(window, frame.reshape(window.shape), exact_boxes)


def _accepted(
    frames: Float[Array, "N 4"],
    objects: Float[Array, "G 4"],
    valid: Bool[Array, "G"],
    settings: Crop,
) -> Bool[Array, "samplers trials"]:
    accepted = (valid & jax.vmap(centre_inside, (None, 0))(objects, frames)).any(axis=1)
    accepted = accepted.reshape(-1, settings.trials)
    if settings.iou_binds:
        iou = iou_matrix(frames, objects).max(axis=1, where=valid, initial=0)
        accepted &= iou.reshape(accepted.shape) >= jnp.asarray(settings.min_ious)[:, None]
    return accepted | ~valid.any()


def _even(choice: Float[Array, ""], accepted: Bool[Array, "samplers trials"]):
    """Choose uniformly among the whole image and the first accepted crop of each sampler."""
    possible = jnp.concatenate([jnp.ones(1, bool), accepted.any(axis=1)])
    rank = jnp.floor(choice * possible.sum())  # of the choice among the possible ones, from 0
    pick = jnp.argmax(jnp.cumsum(possible) > rank)
    return pick > 0, pick - 1, jnp.argmax(accepted[pick - 1])


def _first(order: Float[Array, "samplers"], accepted: Bool[Array, "samplers trials"]):
    """Use the first accepted crop of the first sampler that has one, in random order."""
    samplers = jnp.argsort(order)
    sampler = samplers[jnp.argmax(accepted.any(axis=1)[samplers])]
    return accepted.any(), sampler, jnp.argmax(accepted[sampler])


def _view(window: Int[Array, "*N 4"], frame: Float[Array, "*N 4"], exact_boxes: bool) -> View:
    return View(window, window.astype(jnp.float32) if exact_boxes else frame)


def _whole(pixels: Float[Array, "..."]) -> Int[Array, "..."]:
    """Round towards zero, like a cast in C."""
    return pixels.astype(jnp.int32)
