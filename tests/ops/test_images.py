import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.ops.images import normalise, resample, resize

FILL = (123.0, 117.0, 104.0)
HEIGHT, WIDTH = 40, 56
# Noise outside the pictures too: whoever reads beyond the extent is found out.
CANVAS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

RESIZE = jax.jit(functools.partial(resize, size=32))


@functools.cache
def jitted(size):
    return jax.jit(functools.partial(resample, size=size, fill=FILL))


def with_opencv(picture, window, *, size, fill=FILL, flip=False, flip_vertical=False):
    """Cut the window out of a picture that goes on as `fill`, and let OpenCV resize it."""
    xmin, ymin, xmax, ymax = window
    height, width = picture.shape[:2]
    rows, columns = np.arange(ymin, ymax), np.arange(xmin, xmax)
    cut = np.empty((len(rows), len(columns), picture.shape[2]), np.float32)
    cut[:] = fill
    inside = np.ix_((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
    cut[inside] = picture[max(ymin, 0) : max(ymax, 0), max(xmin, 0) : max(xmax, 0)]
    cut = cut[:, ::-1] if flip else cut
    cut = cut[::-1] if flip_vertical else cut
    return cv2.resize(np.ascontiguousarray(cut), (size, size), interpolation=cv2.INTER_LINEAR)


@st.composite
def spans(draw, length):
    start = draw(st.integers(-3 * length, 2 * length))
    return start, start + draw(st.integers(1, 4 * length))


@pytest.mark.parametrize("size", [32, 75])
@settings(deadline=None, max_examples=60)
@given(
    extent=st.tuples(st.integers(1, HEIGHT), st.integers(1, WIDTH)),
    horizontal=spans(WIDTH),
    vertical=spans(HEIGHT),
    flips=st.tuples(st.booleans(), st.booleans()),
)
def test_any_window_equals_opencv(size, extent, horizontal, vertical, flips):
    window = (horizontal[0], vertical[0], horizontal[1], vertical[1])
    flips = dict(zip(("flip", "flip_vertical"), flips, strict=True))
    image = jitted(size)(CANVAS, jnp.array(extent), jnp.array(window), **flips)
    picture = CANVAS[: extent[0], : extent[1]]
    expected = with_opencv(picture, window, size=size, **flips)
    np.testing.assert_allclose(image, expected, atol=0.01)


def test_a_large_window_is_as_exact_as_a_small_one():
    canvas = np.random.default_rng(1).integers(0, 256, (2, 3001, 3), np.uint8)
    window = (-4500, 0, 7501, 2)
    image = jitted(75)(canvas, jnp.array(canvas.shape[:2]), jnp.array(window))
    np.testing.assert_allclose(image, with_opencv(canvas, window, size=75), atol=0.01)


def test_a_window_of_the_output_size_is_copied():
    image = jitted(32)(CANVAS, jnp.array((HEIGHT, WIDTH)), jnp.array((3, 5, 35, 37)))
    np.testing.assert_array_equal(image, CANVAS[5:37, 3:35])


def test_distortion_spares_the_fill():
    def bright(picture):
        return picture + 1000

    extent, window = jnp.array((20, 20)), jnp.array((-21, 0, 20, 20))
    plain = jitted(32)(CANVAS, extent, window)
    distorting = jax.jit(functools.partial(resample, size=32, fill=FILL, recolour=bright))
    distorted = distorting(CANVAS, extent, window)
    # The picture's share of each column: none, then 0.64 at the edge, then all.
    share = np.clip((np.arange(32) + 0.5) * 41 / 32 - 0.5 - 20, 0, 1)[None, :, None]
    np.testing.assert_allclose(distorted - plain, np.broadcast_to(1000 * share, (32, 32, 3)), 1e-4)


@pytest.mark.parametrize("extent", [(HEIGHT, WIDTH), (17, 31), (1, 1)])
def test_resize_is_opencv_on_the_whole_picture(extent):
    image = RESIZE(CANVAS, jnp.array(extent))
    picture = CANVAS[: extent[0], : extent[1]].astype(np.float32)
    np.testing.assert_allclose(image, cv2.resize(picture, (32, 32)), atol=0.01)


def test_a_float_canvas_keeps_its_fractions():
    canvas = np.full((HEIGHT, WIDTH, 3), 7.25, np.float32)
    np.testing.assert_array_equal(RESIZE(canvas, jnp.array((9, 9))), canvas[:32, :32])


def test_normalise_works_channel_by_channel():
    images = jnp.broadcast_to(jnp.array([10.0, 20.0, 30.0]), (2, 4, 4, 3))
    expected = np.broadcast_to([0.0, 5.0, 2.0], (2, 4, 4, 3))
    np.testing.assert_allclose(normalise(images, (10, 10, 10), (1, 2, 10)), expected)
