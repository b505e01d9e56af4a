import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.ops.crop import Crop, Expand, View, crop, expand, num_crop_draws, whole_picture

EXTENT = (34, 50)
BOXES = np.array(
    [[0.11, 0.2, 0.6, 0.71], [0.53, 0.0, 1.0, 0.43], [0.2, 0.53, 0.37, 1.0]], np.float32
)
WHOLE = np.array([[0, 0, 1, 1]] * 3, np.float32)
SPECK = np.array([[0.7, 0.2, 0.72, 0.22]] * 3, np.float32)
NO_OBJECT, ONE_OBJECT, TWO_OBJECTS = (np.arange(3) < count for count in (0, 1, 2))

CENTRE = Crop(min_ious=(0.0,))
OVERLAP = Crop(min_ious=(0.5,))
EITHER = Crop(min_ious=(0.5, 0.0))
FIRST = EITHER._replace(choice="first")
UNBOUND = Crop(min_ious=(0.5, 0.9), trials=25, choice="first", iou_binds=False)


def pixels(boxes, extent=EXTENT):
    return boxes * np.tile(extent[::-1], 2).astype(np.float32)


@functools.cache
def cropper(settings, exact_boxes):
    def one(draws, extent, objects, valid):
        view = whole_picture(extent)
        return crop(draws, view, objects, valid, settings, exact_boxes=exact_boxes)

    return jax.jit(jax.vmap(one, (0, None, None, None)))


def crops(settings, *, boxes=BOXES, valid=TWO_OBJECTS, extent=EXTENT, exact_boxes=True):
    """The views of 2000 images."""
    draws = jax.random.uniform(jax.random.key(0), (2000, num_crop_draws(settings)))
    views = cropper(settings, exact_boxes)(draws, jnp.array(extent), pixels(boxes, extent), valid)
    return jax.tree.map(np.asarray, views)


def expansions(settings, *, exact_boxes=True):
    draws = jax.random.uniform(jax.random.key(0), (2000, 4))
    view = whole_picture(jnp.array(EXTENT))
    one = functools.partial(expand, view=view, settings=settings, exact_boxes=exact_boxes)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(draws))


def iou_and_centre(frames, objects):
    """Of each frame the best IoU with an object, and whether it holds the centre of any."""
    sides = np.minimum(frames[:, None, 2:], objects[:, 2:]) - np.maximum(
        frames[:, None, :2], objects[:, :2]
    )
    shared = np.prod(np.maximum(sides, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (frames, objects)]
    iou = shared / (areas[0][:, None] + areas[1] - shared)
    centre = (objects[:, :2] + objects[:, 2:]) / 2
    inside = (centre >= frames[:, None, :2]) & (centre <= frames[:, None, 2:])
    return iou.max(axis=1), inside.all(axis=2).any(axis=1)


def is_whole(views, extent=EXTENT):
    return (views.window == [0, 0, extent[1], extent[0]]).all(axis=1)


# ---- expansion


def test_expansion_is_even_in_scale_and_holds_the_picture():
    left, top, right, bottom = expansions(Expand()).window.T
    height, width = EXTENT
    assert (left <= 0).all()
    assert (top <= 0).all()
    assert (right >= width).all()
    assert (bottom >= height).all()
    expanded = (right - left > width) | (bottom - top > height)
    assert expanded.mean() == pytest.approx(0.5, abs=0.04)
    scale = (right - left)[expanded] / width
    # Two margins are cut to whole pixels.
    np.testing.assert_allclose((bottom - top)[expanded] / height, scale, atol=2 / height)
    assert scale.max() <= 4
    quarters = np.quantile(scale, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quarters, [1, 1.75, 2.5, 3.25, 4], atol=0.1)
    free = scale > 1.5
    place = -left[expanded][free] / (right - left - width)[expanded][free]
    assert place.mean() == pytest.approx(0.5, abs=0.04)


def test_a_small_expansion_can_be_left_out():
    views = expansions(Expand(minimum=2.0))
    scale = (views.window[:, 2] - views.window[:, 0])[~is_whole(views)] / EXTENT[1]
    assert 1.9 < scale.min() < 2.1
    assert is_whole(views).mean() == pytest.approx(1 - 0.5 * 2 / 3, abs=0.04)


# ---- crops


@pytest.mark.parametrize("extent", [EXTENT, (40, 9)])
@pytest.mark.parametrize(("settings", "min_iou"), [(CENTRE, 0.0), (OVERLAP, 0.5)])
def test_every_crop_keeps_to_its_limits(settings, min_iou, extent):
    views = crops(settings, extent=extent)
    height, width = extent
    assert (views.window[:, :2] >= 0).all()
    assert (views.window[:, 2:] <= [width, height]).all()
    cut = views.window[~is_whole(views, extent)]
    assert len(cut) > 50
    iou, centred = iou_and_centre(cut, pixels(BOXES[TWO_OBJECTS], extent))
    assert iou.min() >= min_iou - 1e-6
    assert centred.all()
    # Less than a pixel on each axis is cut off.
    sides = cut[:, 2:] - cut[:, :2]
    assert (np.prod(sides + 1, axis=1) >= 0.09 * height * width).all()
    if extent == EXTENT:
        assert (sides[:, 0] <= 2 * (sides[:, 1] + 1)).all()
        assert (sides[:, 1] <= 2 * (sides[:, 0] + 1)).all()


def test_crops_are_even_in_their_aspect():
    settings = CENTRE._replace(scale=(0.5, 0.5), choice="first")
    window = crops(settings, valid=NO_OBJECT, extent=(4000, 4000)).window
    width, height = (window[:, 2:] - window[:, :2]).T
    quarters = np.quantile(width / height, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quarters, [0.5, 0.875, 1.25, 1.625, 2], atol=0.05)


def test_a_crop_of_the_smallest_picture_has_pixels():
    window = crops(CENTRE._replace(choice="first"), valid=NO_OBJECT, extent=(2, 2)).window
    assert (window[:, 2:] > window[:, :2]).all()
    assert (window[:, 2:] <= 2).all()


def test_choice_is_even_among_the_crops_that_succeed_and_the_whole_image():
    assert is_whole(crops(EITHER, boxes=WHOLE)).mean() == pytest.approx(1 / 3, abs=0.03)
    # A speck never overlaps a crop by 0.5: the centre's sampler is left, or nothing.
    assert is_whole(crops(EITHER, boxes=SPECK)).mean() == pytest.approx(1 / 2, abs=0.03)
    assert is_whole(crops(OVERLAP, boxes=SPECK)).all()


def test_the_first_sampler_that_succeeds_is_one_after_the_other_in_random_order():
    # With an object as large as the image the IoU is the crop's share of the area.
    window = crops(FIRST, boxes=WHOLE).window
    small = np.prod(window[:, 2:] - window[:, :2], axis=1) < 0.45 * np.prod(EXTENT)
    window = crops(CENTRE._replace(choice="first"), boxes=WHOLE).window
    small_alone = np.prod(window[:, 2:] - window[:, :2], axis=1) < 0.45 * np.prod(EXTENT)
    assert small.mean() == pytest.approx(0.5 * small_alone.mean(), abs=0.04)
    # One that fails gives way to the next.
    assert is_whole(crops(FIRST, boxes=SPECK)).mean() < 0.01
    assert is_whole(crops(OVERLAP._replace(choice="first"), boxes=SPECK)).all()


def test_a_crop_is_sought_with_its_probability():
    settings = FIRST._replace(probability=0.25)
    assert is_whole(crops(settings, boxes=SPECK)).mean() == pytest.approx(0.75, abs=0.03)


def test_limits_that_do_not_bind_leave_the_centre():
    views = crops(UNBOUND, boxes=SPECK)
    assert is_whole(views).mean() < 0.01
    iou, centred = iou_and_centre(views.window, pixels(SPECK))
    assert iou.max() < 0.1
    assert centred.all()


def test_an_image_without_objects_takes_any_crop():
    views = crops(OVERLAP, boxes=SPECK, valid=NO_OBJECT)
    assert is_whole(views).mean() == pytest.approx(1 / 2, abs=0.03)


def test_padding_has_no_say():
    other = np.where(ONE_OBJECT[:, None], BOXES, WHOLE)
    views = crops(EITHER, valid=ONE_OBJECT), crops(EITHER, boxes=other, valid=ONE_OBJECT)
    jax.tree.map(np.testing.assert_array_equal, *views)


# ---- whole pixels


@pytest.mark.parametrize("exact_boxes", [True, False])
def test_a_frame_is_its_window_or_what_it_was_cut_from(exact_boxes):
    cut, expanded = crops(UNBOUND, exact_boxes=exact_boxes), expansions(Expand(), exact_boxes=False)
    if exact_boxes:
        np.testing.assert_array_equal(cut.window, cut.frame)
        return
    assert (cut.window != cut.frame).any(axis=1).mean() > 0.9
    beyond = cut.frame - cut.window
    assert (beyond[:, :2] >= 0).all()
    assert (beyond < 2).all()
    lost = (cut.frame - cut.window)[:, 2:] - beyond[:, :2]
    assert ((lost >= -1e-4) & (lost < 1)).all()
    # Margins are cut towards the picture.
    assert (np.abs(expanded.frame - expanded.window) < 1).all()
    assert (np.abs(expanded.frame) >= np.abs(expanded.window) - 1e-4).all()


def test_a_crop_is_taken_from_the_view_that_it_is_given():
    view = View(jnp.array([-20, -10, 80, 60]), jnp.array([-20.5, -10.5, 80.25, 60.75]))
    half = Crop((0.0,), trials=1, scale=(0.5, 0.5), aspect=(100 / 70, 100 / 70), choice="first")
    draws = jnp.array([0, 0, 0, 0.5, 0.5, 0.31, 0.33])
    objects, valid = jnp.array([[20.0, 20, 30, 30]]), jnp.array([True])
    one = jax.jit(functools.partial(crop, settings=half, exact_boxes=False))
    window, frame = one(draws, view, objects, valid)
    # 0.155 of the width to the left of it, 0.165 of the height above it.
    assert window.tolist() == [-20 + 15, -10 + 11, -5 + 50, 1 + 35]
    np.testing.assert_allclose(frame, [-4.88375, 1.25625, 45.49125, 36.88125], rtol=1e-5)
