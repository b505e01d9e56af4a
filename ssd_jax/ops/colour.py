"""Random changes of colour for one RGB image with values 0..255.

`Distort` is the SSD paper's, in HSV and real numbers, after the authors' Caffe code, except for the
hue: its 18 are degrees, as in ssd.pytorch and mmdetection, which is half as much as in Caffe, where
the whole circle is 180. `Jitter` is mxnet-ssd's, in OpenCV's HLS with whole numbers, after MXNet's
src/io/image_det_aug_default.cc.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Pixels = Float[Array, "H W 3"]


class Distort(NamedTuple):
    """Changes of colour; each of the four is applied with `probability`, independently."""

    probability: float = 0.5
    brightness: float = 32.0  # largest shift, of pixel values from 0 to 255
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0  # largest rotation, in degrees, at most 180


class Jitter(NamedTuple):
    """Shifts in HLS, each with `probability`; the hue saturates at red instead of wrapping."""

    probability: float = 0.5
    hue: float = 18.0  # largest shift, of 180 for the whole circle
    lightness: float = 32.0  # of 255
    saturation: float = 32.0  # of 255
    contrast: float = 0.5  # largest deviation from 1 of the factor on pixel values


class Distortion(NamedTuple):
    """One change of colour: shift of pixel values, two factors, hue in degrees, and the order."""

    brightness: Float[Array, ""]
    contrast: Float[Array, ""]
    saturation: Float[Array, ""]
    hue: Float[Array, ""]
    contrast_first: Bool[Array, ""]


class Shift(NamedTuple):
    """One jitter: shifts of the three channels as OpenCV stores them, and a factor."""

    hue: Int[Array, ""]
    lightness: Int[Array, ""]
    saturation: Int[Array, ""]
    contrast: Float[Array, ""]


def sample_distortion(draws: Float[Array, "9"], settings: Distort) -> Distortion:
    """The parameters from nine uniform draws in [0, 1)."""
    happens = draws[:4] < settings.probability
    brightness, hue = settings.brightness, settings.hue
    return Distortion(
        brightness=jnp.where(happens[0], between(draws[4], (-brightness, brightness)), 0),
        contrast=jnp.where(happens[1], between(draws[5], settings.contrast), 1),
        saturation=jnp.where(happens[2], between(draws[6], settings.saturation), 1),
        hue=jnp.where(happens[3], between(draws[7], (-hue, hue)), 0),
        contrast_first=draws[8] < 0.5,
    )


def sample_shift(draws: Float[Array, "8"], settings: Jitter) -> Shift:
    """The parameters from eight uniform draws in [0, 1)."""
    reach = jnp.array([settings.hue, settings.lightness, settings.saturation, settings.contrast])
    drawn = jnp.where(draws[:4] < settings.probability, between(draws[4:], (-reach, reach)), 0)
    # Rounded towards zero, like a cast in C.
    hue, lightness, saturation = jnp.trunc(drawn[:3]).astype(jnp.int32)
    return Shift(hue, lightness, saturation, contrast=1 + drawn[3])


def distort(picture: Pixels, distortion: Distortion) -> Pixels:
    """Apply the paper's change; every step saturates."""
    brightness, contrast, saturation, hue, contrast_first = distortion
    before, after = jnp.where(contrast_first, contrast, 1), jnp.where(contrast_first, 1, contrast)
    picture = _saturate(_saturate(picture + brightness) * before)
    angle, value, chroma = _hue_value_chroma(picture)
    # Saturation is chroma / value, so it reaches 1 where the chroma equals the value.
    picture = _from_hue(angle + hue / 60, value, jnp.minimum(chroma * saturation, value))
    return _saturate(picture * after)


def jitter(picture: Pixels, shift: Shift) -> Pixels:
    """Apply mxnet-ssd's change, with OpenCV's rounding to whole numbers after every step."""
    angle, largest, chroma = _hue_value_chroma(picture * (1 / 255))
    smallest = largest - chroma
    lightness = (largest + smallest) * 0.5
    room = jnp.where(lightness < 0.5, largest + smallest, 2 - largest - smallest)
    saturation = chroma / jnp.where(chroma > 0, room, 1)
    angle = jnp.where(angle < 0, angle + 6, angle)

    angle = jnp.clip(jnp.round(angle * 30) + shift.hue, 0, 180) / 30
    lightness = _saturate(jnp.round(lightness * 255) + shift.lightness) / 255
    saturation = _saturate(jnp.round(saturation * 255) + shift.saturation) / 255

    half = jnp.minimum(lightness, 1 - lightness) * saturation
    shifted = _saturate(jnp.round(_from_hue(angle, lightness + half, 2 * half) * 255))
    # Converting to HLS and back loses a level here and there, so it is done only if needed.
    unshifted = (shift.hue == 0) & (shift.lightness == 0) & (shift.saturation == 0)
    return _saturate(jnp.round(jnp.where(unshifted, picture, shifted) * shift.contrast))


def between(draws: Float[Array, "..."], bounds: tuple) -> Float[Array, "..."]:
    """Uniform draws in [0, 1) as uniform draws from `bounds[0]` to `bounds[1]`."""
    low, high = bounds
    return low + draws * (high - low)


def _hue_value_chroma(picture: Pixels) -> tuple[Float[Array, "H W"], ...]:
    """The hue in sixths of the circle from -1 to 5, the value (largest channel) and the chroma."""
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    red_leads, green_leads = value == red, value == green
    lead = jnp.where(red_leads, 0.0, jnp.where(green_leads, 2.0, 4.0))
    lean = jnp.where(
        red_leads, green - blue, jnp.where(green_leads, blue - red, red - green)
    ) / jnp.where(chroma > 0, chroma, 1)
    return lead + lean, value, chroma


def _from_hue(
    angle: Float[Array, "H W"], value: Float[Array, "H W"], chroma: Float[Array, "H W"]
) -> Pixels:
    """The inverse of `_hue_value_chroma`, for angles at most a full circle off; modulo is slow."""
    angle = jnp.where(angle < 0, angle + 6, jnp.where(angle >= 6, angle - 6, angle))
    # A channel is full up to a sixth of the circle from its own hue, and empty from a third on.
    distance = jnp.abs(angle[..., None] - jnp.array([0.0, 2.0, 4.0]))
    distance = jnp.minimum(distance, 6 - distance)
    return value[..., None] - chroma[..., None] * jnp.clip(distance - 1, 0, 1)


def _saturate(levels: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(levels, 0, 255)
