import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssd_jax.ops.augment import (
    Augmentation,
    Parameters,
    apply_parameters,
    augment,
    sample_parameters,
)
from ssd_jax.ops.colour import Jitter, jitter
from ssd_jax.ops.crop import Crop, Expand, View
from ssd_jax.ops.images import resample, resize
from ssd_jax.ops.interpolation import INTERPOLATIONS

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
ALL_VALID = np.ones(3, bool)

# Few settings and one shape serve all tests: the compiler takes most of the time.
PAPER = Augmentation(flip_vertical=0.25)
MXNET_SSD = Augmentation(
    distort=None,
    jitter=Jitter(),
    expand=Expand(minimum=1.05),
    crop=Crop((0.1, 0.3, 0.5), trials=5, choice="first"),
    interpolations=INTERPOLATIONS,
    exact_boxes=False,
)
NOTHING = Augmentation(distort=None, expand=None, crop=None, flip=0.0)


@functools.cache
def sampler(settings):
    def sample(keys, extent, boxes, valid):
        one = functools.partial(sample_parameters, settings=settings)
        return jax.vmap(one, (0, None, None, None))(keys, extent, boxes, valid)

    return jax.jit(sample)


def draw(settings, *, valid=ALL_VALID, extent=EXTENT):
    """The parameters of 2000 images."""
    keys = jax.random.split(jax.random.key(0), 2000)
    return jax.tree.map(np.asarray, sampler(settings)(keys, jnp.array(extent), BOXES, valid))


@functools.cache
def apply(settings):
    return jax.jit(functools.partial(apply_parameters, size=SIZE, settings=settings, fill=FILL))


def fixed(window, *, flip=False, flip_vertical=False):
    view = View(jnp.array(window), jnp.array(window, jnp.float32))
    flips = jnp.array(flip), jnp.array(flip_vertical)
    return Parameters(view, *flips, distortion=None, shift=None, interpolation=jnp.array(0))


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


def mirrored(picture, parameters):
    picture = picture[:, ::-1] if parameters.flip else picture
    return np.ascontiguousarray(picture[::-1] if parameters.flip_vertical else picture)


def image_with_opencv(picture, parameters):
    """The picture and its mask are cut out, mirrored and resized; then coloured and filled."""
    height, width = picture.shape[:2]
    window, distortion = parameters.view.window, parameters.distortion
    left, top, right, bottom = window
    x, y = np.arange(left, right), np.arange(top, bottom)
    inside = np.ix_((y >= 0) & (y < height), (x >= 0) & (x < width))
    cut = np.zeros((len(y), len(x), 4), np.float32)
    part = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    cut[inside] = np.concatenate([part, np.ones_like(part[..., :1])], axis=-1)
    resized = cv2.resize(mirrored(cut, parameters), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    mask = resized[..., 3:]
    picture = np.divide(resized[..., :3], mask, where=mask > 0, out=np.zeros_like(resized[..., :3]))
    return mask * colours_with_opencv(picture, distortion) + (1 - mask) * np.float32(FILL)


def boxes_with_numpy(boxes, valid, parameters, extent):
    left, top, right, bottom = parameters.view.frame
    moved, kept = [], []
    for (xmin, ymin, xmax, ymax), real in zip(boxes * np.tile(extent[::-1], 2), valid, strict=True):
        x, y = (xmin + xmax) / 2, (ymin + ymax) / 2
        kept.append(real and left <= x <= right and top <= y <= bottom)
        x = np.clip((np.array([xmin, xmax]) - left) / (right - left), 0, 1)
        y = np.clip((np.array([ymin, ymax]) - top) / (bottom - top), 0, 1)
        x = 1 - x[::-1] if parameters.flip else x
        y = 1 - y[::-1] if parameters.flip_vertical else y
        moved.append([x[0], y[0], x[1], y[1]])
    return np.array(moved), np.array(kept)


# ---- given parameters: exact results


def picked(drawn, index):
    return jax.tree.map(lambda leaf: leaf[index], drawn)


@pytest.mark.parametrize("extent", [EXTENT, (HEIGHT, WIDTH), (40, 9)])
def test_augmented_image_and_boxes_equal_the_reference(extent):
    drawn = draw(PAPER, extent=extent, valid=VALID)
    for index in range(40):
        parameters = picked(drawn, index)
        image, boxes, valid = apply(PAPER)(parameters, CANVAS, jnp.array(extent), BOXES, VALID)
        expected = image_with_opencv(CANVAS[: extent[0], : extent[1]], parameters)
        np.testing.assert_allclose(image, expected, atol=0.01)
        moved, kept = boxes_with_numpy(BOXES, VALID, parameters, np.array(extent))
        np.testing.assert_allclose(boxes, moved, atol=1e-5)
        np.testing.assert_array_equal(valid, kept)


def test_mxnet_ssd_colours_the_picture_fills_cuts_and_resizes_it_in_this_order():
    height, width = EXTENT
    flags = [getattr(cv2, f"INTER_{name.upper()}") for name in INTERPOLATIONS]
    drawn = draw(MXNET_SSD, valid=VALID)
    for index in range(40):
        parameters = picked(drawn, index)
        extent = jnp.array(EXTENT)
        image, boxes, valid = apply(MXNET_SSD)(parameters, CANVAS, extent, BOXES, VALID)
        left, top, right, bottom = parameters.view.window
        picture = np.asarray(jitter_picture(CANVAS[:height, :width], parameters.shift))
        margin = 4 * WIDTH
        canvas = np.tile(np.uint8(FILL), (2 * margin + height, 2 * margin + width, 1))
        canvas[margin : margin + height, margin : margin + width] = picture
        cut = canvas[margin + top : margin + bottom, margin + left : margin + right]
        flag = flags[parameters.interpolation]
        resized = cv2.resize(mirrored(cut, parameters), (SIZE, SIZE), interpolation=flag)
        assert np.abs(np.round(image) - resized).max() <= 1
        moved, kept = boxes_with_numpy(BOXES, VALID, parameters, np.array(EXTENT))
        np.testing.assert_allclose(boxes, moved, atol=1e-5)
        np.testing.assert_array_equal(valid, kept)


@jax.jit
def jitter_picture(picture, shift):
    return jitter(picture.astype(jnp.float32), shift)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("flip_vertical", [False, True])
def test_boxes_stay_on_their_objects(flip, flip_vertical):
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    canvas[10:25, 20:45] = 255
    extent = jnp.array((HEIGHT, WIDTH))
    boxes = np.array([[20 / WIDTH, 10 / HEIGHT, 45 / WIDTH, 25 / HEIGHT]] * 3, np.float32)
    parameters = fixed((8, 4, 51, 38), flip=flip, flip_vertical=flip_vertical)
    image, moved, valid = apply(PAPER)(parameters, canvas, extent, boxes, ALL_VALID)
    rows, columns = np.nonzero(image[..., 0] > 127)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(moved[0] * SIZE, painted, atol=0.6)
    assert valid.all()


def test_objects_whose_centre_is_cut_off_are_dropped():
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0.4, 0.4, 0.6, 0.6]], np.float32)
    left_half = fixed((0, 0, 20, 30))
    extent = jnp.array((30, 40))
    _, moved, valid = apply(PAPER)(left_half, CANVAS, extent, boxes, np.array([True, True, False]))
    assert valid.tolist() == [True, False, False]
    assert moved[0].tolist() == [0, 0, 1, 1]


# ---- the distribution of the parameters


def test_flips_and_interpolations_happen_as_often_as_they_should():
    drawn = draw(PAPER)
    assert drawn.flip.mean() == pytest.approx(0.5, abs=0.04)
    assert drawn.flip_vertical.mean() == pytest.approx(0.25, abs=0.04)
    assert np.abs(np.corrcoef(drawn.flip, drawn.flip_vertical)[0, 1]) < 0.08
    shares = np.bincount(draw(MXNET_SSD).interpolation) / 2000
    np.testing.assert_allclose(shares, [0.2] * 5, atol=0.04)


def test_a_crop_of_the_expanded_image_still_shows_an_object():
    left, top, right, bottom = draw(PAPER).view.window.T
    boxes = BOXES * np.tile(EXTENT[::-1], 2)
    x, y = ((boxes[:, axis] + boxes[:, axis + 2]) / 2 for axis in (0, 1))
    centred = (x >= left[:, None]) & (x <= right[:, None])
    centred &= (y >= top[:, None]) & (y <= bottom[:, None])
    assert centred.any(axis=1).all()
    reaches_out = (left < 0) | (top < 0) | (right > EXTENT[1]) | (bottom > EXTENT[0])
    assert 0.3 < reaches_out.mean() < 0.5


def test_a_flip_of_probability_one_is_certain():
    drawn = draw(NOTHING._replace(flip=1.0, flip_vertical=1.0))
    assert drawn.flip.all()
    assert drawn.flip_vertical.all()


# ---- the whole


def test_everything_can_be_switched_off():
    extent = jnp.array(EXTENT)
    nothing_done = jax.jit(functools.partial(augment, size=SIZE, settings=NOTHING, fill=FILL))
    image, boxes, valid = nothing_done(jax.random.key(0), CANVAS, extent, BOXES, VALID)
    resized = jax.jit(functools.partial(resize, size=SIZE))(CANVAS, extent)
    np.testing.assert_allclose(image, resized, atol=1e-4)
    np.testing.assert_allclose(boxes, BOXES, atol=1e-6)
    np.testing.assert_array_equal(valid, VALID)


def test_what_is_switched_off_is_not_computed():
    def flops(function, *arguments, **options):
        function = functools.partial(function, size=SIZE, fill=FILL, **options)
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    extent, window = jnp.array(EXTENT), jnp.array((0, 0, *EXTENT[::-1]))
    alone = flops(resample, CANVAS, extent, window, flip=jnp.array(True))
    off = flops(augment, jax.random.key(0), CANVAS, extent, BOXES, VALID, settings=NOTHING)
    # Two dozen random numbers, and the boxes.
    assert off < 1.15 * alone


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


def test_one_device_and_eight_give_the_same_bits(augmented, mesh_of_eight):
    batch = batch_of([0, 1, 2, 3, 4, 5, 6, 7])
    rows = NamedSharding(mesh_of_eight, PartitionSpec("data"))
    everywhere = NamedSharding(mesh_of_eight, PartitionSpec())
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
