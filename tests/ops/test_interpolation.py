import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_jax.errors import UserError
from ssd_jax.ops.interpolation import INTERPOLATIONS, resample_by
from ssd_jax.sharding import make_mesh

SIZE = 32
FILL = (123, 117, 104)
HEIGHT, WIDTH = 40, 56
LONGEST = 4 * WIDTH
# Noise outside the pictures too: whoever reads beyond the extent is found out.
CANVAS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
METHODS = {name: getattr(cv2, f"INTER_{name.upper()}") for name in INTERPOLATIONS}


@functools.cache
def jitted(methods):
    return jax.jit(
        functools.partial(resample_by, methods=methods, longest=LONGEST, size=SIZE, fill=FILL)
    )


def ours(name, extent, window, methods=INTERPOLATIONS, **flips):
    choice = jnp.array(methods.index(name))
    return jitted(methods)(choice, CANVAS, jnp.array(extent), jnp.array(window), **flips)


def cut_out(extent, window, flip=False, flip_vertical=False):
    """The window of a picture that goes on as the fill."""
    xmin, ymin, xmax, ymax = window
    cut = np.empty((ymax - ymin, xmax - xmin, 3), np.uint8)
    cut[:] = FILL
    rows, columns = np.arange(ymin, ymax), np.arange(xmin, xmax)
    inside = np.ix_((rows >= 0) & (rows < extent[0]), (columns >= 0) & (columns < extent[1]))
    cut[inside] = CANVAS[max(ymin, 0) : extent[0], max(xmin, 0) : extent[1]][
        : max(ymax - max(ymin, 0), 0), : max(xmax - max(xmin, 0), 0)
    ]
    cut = cut[:, ::-1] if flip else cut
    return np.ascontiguousarray(cut[::-1] if flip_vertical else cut)


@st.composite
def spans(draw, length):
    start = draw(st.integers(-3 * length, length))
    return start, start + draw(st.integers(1, 4 * length))


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(INTERPOLATIONS),
    extent=st.tuples(st.integers(1, HEIGHT), st.integers(1, WIDTH)),
    horizontal=spans(WIDTH),
    vertical=spans(HEIGHT),
    flips=st.tuples(st.booleans(), st.booleans()),
)
def test_any_window_equals_opencv(name, extent, horizontal, vertical, flips):
    window = (horizontal[0], vertical[0], horizontal[1], vertical[1])
    flips = dict(zip(("flip", "flip_vertical"), flips, strict=True))
    image = ours(name, extent, window, **flips)
    cut = cut_out(extent, window, **flips)
    real = cv2.resize(cut.astype(np.float32), (SIZE, SIZE), interpolation=METHODS[name])
    np.testing.assert_allclose(image, np.clip(real, 0, 255), atol=0.01)
    whole = cv2.resize(cut, (SIZE, SIZE), interpolation=METHODS[name])
    assert np.abs(np.round(image) - whole).max() <= 1


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_a_window_of_the_output_size_is_copied(name):
    image = ours(name, (HEIGHT, WIDTH), (3, 5, 35, 37))
    np.testing.assert_allclose(image, CANVAS[5:37, 3:35], atol=1e-3)


@pytest.mark.parametrize("window", [(0, 0, 64, 96), (0, 0, 31, 40), (0, 0, 56, 31), (0, 0, 8, 8)])
def test_area_where_both_axes_shrink_or_not(window):
    cut = cut_out((HEIGHT, WIDTH), window).astype(np.float32)
    expected = cv2.resize(cut, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(ours("area", (HEIGHT, WIDTH), window), expected, atol=0.01)


def test_a_choice_among_fewer_methods_is_the_same():
    window = (-7, 3, 60, 39)
    few = ours("cubic", (HEIGHT, WIDTH), window, methods=("nearest", "cubic"))
    np.testing.assert_allclose(few, ours("cubic", (HEIGHT, WIDTH), window), atol=1e-4)


def test_overshoot_is_saturated():
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    canvas[:, 10:] = 255
    window = jnp.array([2, 2, 22, 22])
    for name in ("cubic", "lanczos4"):
        choice = jnp.array(INTERPOLATIONS.index(name))
        image = jitted(INTERPOLATIONS)(choice, canvas, jnp.array((HEIGHT, WIDTH)), window)
        assert image.min() == 0
        assert image.max() == 255


@pytest.mark.parametrize("methods", [(), ("linear", "bilinear")])
def test_an_unknown_method_is_refused(methods):
    with pytest.raises(UserError, match=r"got interpolations .*; expected one or more of nearest"):
        resample_by(
            jnp.array(0), jnp.array(CANVAS), jnp.array((4, 4)), jnp.array([0, 0, 4, 4]),
            methods=methods, longest=4, size=4, fill=FILL,
        )  # fmt: skip


def test_each_device_resamples_its_own_picture():
    mesh = make_mesh(jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("data")
    resample = functools.partial(
        resample_by, methods=("nearest", "linear"), longest=LONGEST, size=SIZE, fill=FILL
    )
    sharded = jax.jit(
        jax.shard_map(jax.vmap(resample), mesh=mesh, in_specs=(rows,) * 4, out_specs=rows)
    )
    extent, window = [HEIGHT, WIDTH], [3, 5, 40, 30]
    canvases = jnp.stack([CANVAS] * 2)
    both = (jnp.array([each] * 2) for each in (extent, window))
    found = sharded(jnp.array([0, 1]), canvases, *both)
    for name, picture in zip(("nearest", "linear"), found, strict=True):
        np.testing.assert_allclose(picture, ours(name, extent, window), atol=1e-3)
