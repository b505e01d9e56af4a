import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssd_jax.ops.augment import (
    Augmentation,
    Crop,
    Distort,
    Distortion,
    Parameters,
    apply_parameters,
    augment,
    distort,
    sample_parameters,
)
from ssd_jax.ops.images import resize

SIZE = 32
FILL = (123, 117, 104)
HEIGHT, WIDTH = 40, 56
EXTENT = (34, 50)
RANDOM = np.random.default_rng(0)
CANVAS = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
# No centre falls on a pixel's edge, where rounding would decide.
BOXES = np.array(
    [[0.11, 0.2, 0.6, 0.71], [0.53, 0.0, 1.0, 0.43], [0.2, 0.53, 0.37, 1.0]], np.float32
)
VALID = np.array([True, True, False])
WHOLE = np.array([[0, 0, 1, 1]] * 3, np.float32)
SPECK = np.array([[0.7, 0.2, 0.72, 0.22]] * 3, np.float32)
NO_OBJECT, ONE_OBJECT, THREE_OBJECTS = (np.arange(3) < count for count in (0, 1, 3))

# Few settings and one shape serve all tests: the compiler takes most of the time.
PAPER = Augmentation()
EXPANSION = Augmentation(crop=None)
CENTRE = Augmentation(Distort(probability=0.0), expand=None, crop=Crop(min_ious=(0.0,)), flip=1.0)
OVERLAP = Augmentation(distort=None, expand=None, crop=Crop(min_ious=(0.5,)))
EITHER = Augmentation(distort=None, expand=None, crop=Crop(min_ious=(0.5, 0.0)))


@functools.cache
def sampler(settings):
    def sample(keys, extent, boxes, valid):
        one = functools.partial(sample_parameters, settings=settings)
        return jax.vmap(one, (0, None, None, None))(keys, extent, boxes, valid)

    return jax.jit(sample)


def draw(settings, *, boxes=BOXES, valid=THREE_OBJECTS, extent=EXTENT):
    """The parameters of 2000 images."""
    keys = jax.random.split(jax.random.key(0), 2000)
    return jax.tree.map(np.asarray, sampler(settings)(keys, jnp.array(extent), boxes, valid))


@pytest.fixture(scope="module")
def apply():
    return jax.jit(functools.partial(apply_parameters, size=SIZE, fill=FILL))


def fixed(window, *, flip=False, distortion=None):
    return Parameters(jnp.array(window), jnp.array(flip), distortion)


def assert_bit_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


# ---- references: OpenCV and plain NumPy


def colours_with_opencv(picture, distortion):
    brightness, contrast, saturation, hue, contrast_first = map(np.asarray, distortion)
    picture = np.clip(picture + brightness, 0, 255)
    picture = np.clip(picture * contrast, 0, 255) if contrast_first else picture
    hsv = cv2.cvtColor(picture.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + hue) % 360
    hsv[..., 1] = np.minimum(hsv[..., 1] * saturation, 1)
    picture = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return np.clip(picture if contrast_first else picture * contrast, 0, 255)


def image_with_opencv(picture, window, flip, distortion):
    """The picture and its mask are cut out, mirrored and resized; then coloured and filled."""
    height, width = picture.shape[:2]
    left, top, right, bottom = window
    x, y = np.arange(left, right), np.arange(top, bottom)
    inside = np.ix_((y >= 0) & (y < height), (x >= 0) & (x < width))
    cut = np.zeros((len(y), len(x), 4), np.float32)
    part = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    cut[inside] = np.concatenate([part, np.ones_like(part[..., :1])], axis=-1)
    cut = np.ascontiguousarray(cut[:, ::-1] if flip else cut)
    resized = cv2.resize(cut, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    mask = resized[..., 3:]
    picture = np.divide(resized[..., :3], mask, where=mask > 0, out=np.zeros_like(resized[..., :3]))
    return mask * colours_with_opencv(picture, distortion) + (1 - mask) * np.float32(FILL)


def boxes_with_numpy(boxes, valid, window, flip, extent):
    left, top, right, bottom = window
    moved, kept = [], []
    for (xmin, ymin, xmax, ymax), real in zip(boxes * np.tile(extent[::-1], 2), valid, strict=True):
        x, y = (xmin + xmax) / 2, (ymin + ymax) / 2
        kept.append(real and left <= x <= right and top <= y <= bottom)
        x = np.clip((np.array([xmin, xmax]) - left) / (right - left), 0, 1)
        y = np.clip((np.array([ymin, ymax]) - top) / (bottom - top), 0, 1)
        x = 1 - x[::-1] if flip else x
        moved.append([x[0], y[0], x[1], y[1]])
    return np.array(moved), np.array(kept)


def iou_and_centre(windows, boxes, extent):
    """Of each window the best IoU with a box, and whether it holds the centre of any."""
    boxes = boxes * np.tile(extent[::-1], 2)
    best, centred = [], []
    for window in windows:
        sides = np.minimum(window[2:], boxes[:, 2:]) - np.maximum(window[:2], boxes[:, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        best.append(np.max(shared / (np.prod(window[2:] - window[:2]) + areas - shared)))
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        centred.append(((centre >= window[:2]) & (centre <= window[2:])).all(axis=1).any())
    return np.array(best), np.array(centred)


# ---- given parameters: exact results


@pytest.mark.parametrize("extent", [EXTENT, (HEIGHT, WIDTH), (40, 9)])
def test_augmented_image_and_boxes_equal_the_reference(apply, extent):
    drawn = draw(PAPER, extent=extent, valid=VALID)
    for index in range(40):
        parameters = jax.tree.map(lambda leaf, index=index: leaf[index], drawn)
        image, boxes, valid = apply(parameters, CANVAS, jnp.array(extent), BOXES, VALID)
        window, flip, distortion = parameters
        picture = CANVAS[: extent[0], : extent[1]]
        expected = image_with_opencv(picture, window, flip, distortion)
        np.testing.assert_allclose(image, expected, atol=0.01)
        moved, kept = boxes_with_numpy(BOXES, VALID, window, flip, np.array(extent))
        np.testing.assert_allclose(boxes, moved, atol=1e-5)
        np.testing.assert_array_equal(valid, kept)


def test_boxes_stay_on_their_objects(apply):
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    canvas[10:25, 20:45] = 255
    extent = jnp.array((HEIGHT, WIDTH))
    boxes = np.array([[20 / WIDTH, 10 / HEIGHT, 45 / WIDTH, 25 / HEIGHT]] * 3, np.float32)
    for flip in (False, True):
        parameters = fixed((8, 4, 51, 38), flip=flip)
        image, moved, valid = apply(parameters, canvas, extent, boxes, THREE_OBJECTS)
        rows, columns = np.nonzero(image[..., 0] > 127)
        painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(moved[0] * SIZE, painted, atol=0.6)
        assert valid.all()


def test_objects_whose_centre_is_cut_off_are_dropped(apply):
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.4, 0.4, 0.6, 0.6]], np.float32)
    left_half = fixed((0, 0, 20, 30))
    extent = jnp.array((30, 40))
    _, moved, valid = apply(left_half, CANVAS, extent, boxes, np.array([True, True, False]))
    assert valid.tolist() == [True, False, False]
    assert moved[0].tolist() == [0, 0, 1, 1]


def colours(brightness=0.0, contrast=1.0, saturation=1.0, hue=0.0, contrast_first=True):
    numbers = (jnp.float32(value) for value in (brightness, contrast, saturation, hue))
    return Distortion(*numbers, jnp.array(contrast_first))


@pytest.mark.parametrize(
    ("distortion", "expected"),
    [
        (colours(), [200, 100, 50]),
        (colours(brightness=-60), [140, 40, 0]),
        (colours(contrast=1.5), [255, 150, 75]),
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


# ---- the distribution of the parameters


def test_each_distortion_happens_half_of_the_time_and_within_its_range():
    drawn = draw(PAPER).distortion
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
    together = [drawn.brightness != 0, drawn.contrast != 1, drawn.saturation != 1, drawn.hue != 0]
    assert np.abs(np.corrcoef(together) - np.eye(4)).max() < 0.08


def test_flips_happen_half_of_the_time():
    assert draw(PAPER).flip.mean() == pytest.approx(0.5, abs=0.04)


def test_expansion_is_even_in_scale_and_holds_the_picture():
    left, top, right, bottom = draw(EXPANSION).window.T
    height, width = EXTENT
    assert (left <= 0).all()
    assert (top <= 0).all()
    assert (right >= width).all()
    assert (bottom >= height).all()
    expanded = (right - left > width) | (bottom - top > height)
    assert expanded.mean() == pytest.approx(0.5, abs=0.04)
    scale = (right - left)[expanded] / width
    np.testing.assert_allclose((bottom - top)[expanded] / height, scale, atol=0.04)
    assert scale.max() <= 4
    quarters = np.quantile(scale, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quarters, [1, 1.75, 2.5, 3.25, 4], atol=0.1)
    free = scale > 1.5
    place = -left[expanded][free] / (right - left - width)[expanded][free]
    assert place.mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("extent", [EXTENT, (40, 9)])
@pytest.mark.parametrize(("settings", "min_iou"), [(CENTRE, 0.0), (OVERLAP, 0.5)])
def test_every_crop_keeps_to_its_limits(settings, min_iou, extent):
    windows = draw(settings, valid=VALID, extent=extent).window
    height, width = extent
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] <= [width, height]).all()
    crops = windows[(windows != [0, 0, width, height]).any(axis=1)]
    assert len(crops) > 50
    iou, centred = iou_and_centre(crops, BOXES[VALID], np.array(extent))
    assert iou.min() >= min_iou - 1e-6
    assert centred.all()
    # Half a pixel on either side is the rounding's.
    sides = crops[:, 2:] - crops[:, :2]
    assert (np.prod(sides + 0.5, axis=1) >= 0.09 * height * width).all()
    if extent == EXTENT:
        assert (sides[:, 0] - 0.5 <= 2 * (sides[:, 1] + 0.5)).all()
        assert (sides[:, 1] - 0.5 <= 2 * (sides[:, 0] + 0.5)).all()


def test_a_crop_of_the_expanded_image_still_shows_an_object():
    windows = draw(PAPER).window
    iou, centred = iou_and_centre(windows, BOXES, np.array(EXTENT))
    assert centred.all()
    assert iou.min() > 0
    reaches_out = (windows[:, :2] < 0).any(axis=1) | (windows[:, 2:] > EXTENT[::-1]).any(axis=1)
    assert 0.3 < reaches_out.mean() < 0.5


def uncropped(drawn):
    return (drawn.window == [0, 0, EXTENT[1], EXTENT[0]]).all(axis=1).mean()


def test_choice_is_even_among_the_crops_that_succeed_and_the_whole_image():
    assert uncropped(draw(EITHER, boxes=WHOLE)) == pytest.approx(1 / 3, abs=0.03)
    # A speck never overlaps a crop by 0.5: the centre's sampler is left, or nothing.
    assert uncropped(draw(EITHER, boxes=SPECK)) == pytest.approx(1 / 2, abs=0.03)
    assert uncropped(draw(OVERLAP, boxes=SPECK)) == 1


def test_an_image_without_objects_takes_any_crop():
    drawn = draw(OVERLAP, boxes=SPECK, valid=NO_OBJECT)
    assert uncropped(drawn) == pytest.approx(1 / 2, abs=0.03)


def test_padding_has_no_say():
    other = np.where(ONE_OBJECT[:, None], BOXES, WHOLE)
    assert_bit_equal(draw(PAPER, valid=ONE_OBJECT), draw(PAPER, boxes=other, valid=ONE_OBJECT))


def test_probabilities_of_zero_and_one_are_certain():
    drawn = draw(CENTRE)
    assert drawn.flip.all()
    assert not drawn.distortion.hue.any()


# ---- the whole


def test_everything_can_be_switched_off():
    nothing = Augmentation(distort=None, expand=None, crop=None, flip=0.0)
    extent = jnp.array(EXTENT)
    nothing_done = jax.jit(functools.partial(augment, size=SIZE, settings=nothing, fill=FILL))
    image, boxes, valid = nothing_done(jax.random.key(0), CANVAS, extent, BOXES, VALID)
    resized = jax.jit(functools.partial(resize, size=SIZE))(CANVAS, extent)
    np.testing.assert_allclose(image, resized, atol=1e-4)
    np.testing.assert_allclose(boxes, BOXES, atol=1e-6)
    np.testing.assert_array_equal(valid, VALID)


def batch_of(sample_ids):
    """A batch in which each image depends on its sample id alone."""
    canvas = np.stack([np.roll(CANVAS, number, axis=0) for number in sample_ids])
    extent = np.stack([(HEIGHT - number, WIDTH - number) for number in sample_ids])
    boxes = np.stack([BOXES * (1 - number / 20) for number in sample_ids])
    valid = np.stack([np.roll(VALID, number) for number in sample_ids])
    return np.array(sample_ids), canvas, extent.astype(np.int32), boxes.astype(np.float32), valid


def augment_batch(step, sample_ids, canvas, extent, boxes, valid):
    key = jax.random.fold_in(jax.random.key(0), step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, sample_ids)
    one = functools.partial(augment, size=SIZE, settings=PAPER, fill=FILL)
    return jax.vmap(one)(keys, canvas, extent, boxes, valid)


@pytest.fixture(scope="module")
def augmented():
    return jax.jit(augment_batch)


def test_a_sample_does_not_depend_on_its_neighbours(augmented):
    batch = augmented(3, *batch_of([0, 1, 2, 3, 4, 5, 6, 7]))
    other = augmented(3, *batch_of([9, 8, 5, 9, 9, 0, 9, 9]))
    pick = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), batch) for i in (0, 5)]
    assert_bit_equal(pick, [jax.tree.map(lambda leaf, i=i: leaf[i], other) for i in (5, 2)])


def test_another_step_is_another_variant(augmented):
    batch = batch_of([0, 1, 2, 3, 4, 5, 6, 7])
    assert_bit_equal(augmented(3, *batch), augmented(3, *batch))
    differs = np.any(np.asarray(augmented(3, *batch)[0] != augmented(4, *batch)[0]), axis=(1, 2, 3))
    assert differs.all()


def test_one_device_and_eight_give_the_same_bits(augmented):
    batch = batch_of([0, 1, 2, 3, 4, 5, 6, 7])
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    sharded = jax.jit(augment_batch, in_shardings=(everywhere, *[rows] * 5), out_shardings=rows)(
        3, *jax.device_put(batch, rows)
    )
    assert len(sharded[0].sharding.device_set) == 8
    assert_bit_equal(augmented(3, *batch), sharded)


def test_boxes_end_up_inside_the_image(augmented):
    _, boxes, valid = augmented(5, *batch_of([0, 1, 2, 3, 4, 5, 6, 7]))
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[..., 2:] > boxes[..., :2])[valid].all()
