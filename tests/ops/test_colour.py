import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def colours(brightness=0.0, contrast=1.0, saturation=1.0, hue=0.0, contrast_first=True):
    numbers = (jnp.float32(value) for value in (brightness, contrast, saturation, hue))
    return Distortion(*numbers, jnp.array(contrast_first))


@pytest.mark.parametrize(
    ("distortion", "expected"),
    [
        (colours(), [200, 100, 50]),
        (colours(brightness=-60), [140, 40, 0]),
        (colours(contrast=1.5), [255, 150, 75]),
        (colours(brightness=100, contrast=0.5), [127.5, 100, 75]),  # after 255, 200, 150
        (colours(contrast=1.5, saturation=0.5), [255, 202.5, 165]),  # after 255, 150, 75
        (colours(saturation=0), [200, 200, 200]),
        (colours(saturation=0.5), [200, 150, 125]),
        (colours(saturation=100), [200, 200 / 3, 0]),  # a hue of 20 degrees, a third of the way
        (colours(hue=120), [50, 200, 100]),
        (colours(hue=-120), [100, 50, 200]),
        (colours(contrast=1.5, hue=120, contrast_first=False), [75, 255, 150]),
    ],
)
def test_distortion_of_one_colour(distortion, expected):
    picture = jnp.broadcast_to(jnp.array([200.0, 100.0, 50.0]), (4, 4, 3))
    np.testing.assert_allclose(jax.jit(distort)(picture, distortion)[0, 0], expected, atol=1e-3)


def test_half_a_turn_of_the_hue_is_the_same_both_ways():
    one_way, other_way = (
        jax.jit(distort)(PICTURE.astype(np.float32), colours(hue=hue)) for hue in (180.0, -180.0)
    )
    np.testing.assert_allclose(one_way, other_way, atol=0.01)


def jitter_with_opencv(picture, hue, lightness, saturation, contrast):
    if hue or lightness or saturation:
        hls = cv2.cvtColor(picture, cv2.COLOR_RGB2HLS) + np.array([hue, lightness, saturation])
        hls = np.clip(hls, 0, [180, 255, 255]).astype(np.uint8)
        picture = cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)
    return cv2.convertScaleAbs(picture, alpha=contrast)


@pytest.mark.parametrize(
    "shift",
    [
        (0, 0, 0, 1.0),
        (0, 0, 0, 1.5),
        (5, 0, 0, 1.0),
        (0, 0, 9, 1.0),
        (0, 1, 0, 0.6),
        (-3, 0, 9, 1.0),
        (-17, 12, -30, 1.0),
        (17, -30, 30, 1.37),
    ],
)
def test_jitter_is_opencv_in_whole_numbers(shift):
    ours = jax.jit(jitter)(
        PICTURE.astype(np.float32), Shift(*map(jnp.int32, shift[:3]), jnp.float32(shift[3]))
    )
    difference = np.abs(ours - jitter_with_opencv(PICTURE, *shift).astype(int))
    # Where a channel of HLS lies halfway between two whole numbers, either is right.
    assert (difference > 0).mean() < 1e-3
    assert difference.max() <= 6


def samples(sample, settings, count):
    draws = jax.random.uniform(jax.random.key(0), (2000, count))
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda d: sample(d, settings)))(draws))


def test_each_distortion_happens_half_of_the_time_and_within_its_range():
    drawn = samples(sample_distortion, Distort(), 9)
    off = Distortion(brightness=0, contrast=1, saturation=1, hue=0, contrast_first=False)
    low = Distortion(-32, 0.5, 0.5, -18, False)
    high = Distortion(32, 1.5, 1.5, 18, True)
    for values, none, least, most in zip(drawn, off, low, high, strict=True):
        happened = values[values != none]
        assert len(happened) / len(values) == pytest.approx(0.5, abs=0.04)
        assert happened.min() >= least
        assert happened.max() <= most
        if values.dtype == np.float32:
            reach = most - least
            assert happened.mean() == pytest.approx(none, abs=0.03 * reach)
            assert np.ptp(happened) > 0.98 * reach
    assert_independent(drawn.brightness, drawn.contrast - 1, drawn.saturation - 1, drawn.hue)


def test_each_shift_happens_half_of_the_time_and_is_cut_towards_zero():
    drawn = samples(sample_shift, Jitter(), 8)
    for values, reach in zip(drawn[:3], (18, 32, 32), strict=True):
        # A shift that happens is less than 1 either way, so none, once in `reach`.
        assert (values != 0).mean() == pytest.approx(0.5 * (1 - 1 / reach), abs=0.04)
        assert (values.min(), values.max()) == (1 - reach, reach - 1)
    changed = drawn.contrast[drawn.contrast != 1]
    assert len(changed) / 2000 == pytest.approx(0.5, abs=0.04)
    np.testing.assert_allclose(np.quantile(changed, [0, 0.5, 1]), [0.5, 1, 1.5], atol=0.04)
    assert_independent(*drawn[:3], drawn.contrast - 1)


def assert_independent(*changes):
    together = np.corrcoef([change != 0 for change in changes])
    assert np.abs(together - np.eye(len(changes))).max() < 0.08


@pytest.mark.parametrize(
    ("sample", "settings", "count"),
    [(sample_distortion, Distort(probability=0), 9), (sample_shift, Jitter(probability=0), 8)],
)
def test_a_probability_of_zero_is_never(sample, settings, count):
    drawn = samples(sample, settings, count)
    assert not drawn.hue.any()
    assert not drawn.saturation.any() or (drawn.saturation == 1).all()
    assert (drawn.contrast == 1).all()
