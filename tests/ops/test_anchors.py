import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose

from ssd_jax.errors import UserError
from ssd_jax.ops.anchors import (
    AnchorLevel,
    chained_levels,
    default_boxes,
    even_levels,
    gluoncv_levels,
    mxnet_legacy_levels,
    mxnet_levels,
    paper_levels,
)

SSD300_MAPS = [(side, side) for side in (38, 19, 10, 5, 3, 1)]
SSD512_MAPS = [(side, side) for side in (64, 32, 16, 8, 4, 2, 1)]
RESNET_MAPS = [(side, side) for side in (32, 16, 8, 4, 2, 1)]
MXNET_SSD512_MAPS = [*SSD512_MAPS[:-1], (2, 2)]


def paper_boxes(image_size, maps):
    return default_boxes(maps, paper_levels(image_size, maps))


@pytest.mark.parametrize(
    ("image_size", "maps", "count"),
    [(300, SSD300_MAPS, 8732), (512, SSD512_MAPS, 24564), (512, RESNET_MAPS, 6132)],
)
def test_counts_of_the_paper(image_size, maps, count):
    levels = paper_levels(image_size, maps)
    boxes = default_boxes(maps, levels)
    assert boxes.shape == (count, 4)
    assert boxes.dtype == np.float32
    cells = [height * width for height, width in maps]
    assert count == sum(n * level.anchors_per_cell for n, level in zip(cells, levels, strict=True))


def test_first_cell_of_ssd300():
    # Cells of 8 pixels, so the first centre is at (4, 4); sizes 30, sqrt(30 * 60), then 30 with
    # the ratios 2 and 1/2: sides 30 * sqrt(2) and 30 / sqrt(2).
    sides = [(30, 30), (42.42641, 42.42641), (42.42641, 21.2132), (21.2132, 42.42641)]
    expected = [(4 - w / 2, 4 - h / 2, 4 + w / 2, 4 + h / 2) for w, h in sides]
    assert_allclose(paper_boxes(300, SSD300_MAPS)[:4] * 300, expected, atol=1e-3)


def test_order_in_a_cell_of_six():
    boxes = paper_boxes(300, SSD300_MAPS)[38 * 38 * 4 :][:6] * 300
    # Second map: cells of 16 pixels, size 60, the next one's 111.
    assert_allclose((boxes[:, :2] + boxes[:, 2:]) / 2, [[8, 8]] * 6, atol=1e-3)
    root2, root3 = 2**0.5, 3**0.5
    width = [60, (60 * 111) ** 0.5, 60 * root2, 60 / root2, 60 * root3, 60 / root3]
    height = [60, (60 * 111) ** 0.5, 60 / root2, 60 * root2, 60 / root3, 60 * root3]
    assert_allclose(boxes[:, 2] - boxes[:, 0], width, atol=1e-3)
    assert_allclose(boxes[:, 3] - boxes[:, 1], height, atol=1e-3)


def test_cells_run_along_rows():
    boxes = paper_boxes(300, SSD300_MAPS) * 300
    assert_allclose((boxes[4, :2] + boxes[4, 2:]) / 2, [12, 4], atol=1e-3)
    assert_allclose((boxes[38 * 4, :2] + boxes[38 * 4, 2:]) / 2, [4, 12], atol=1e-3)


def test_last_box_of_ssd300():
    # One cell of 300 pixels; size 264 with ratio 1/2: 186.676 wide, 373.352 high, not clipped.
    box = paper_boxes(300, SSD300_MAPS)[-1] * 300
    assert_allclose(box, [56.6619, -36.6762, 243.3381, 336.6762], atol=1e-3)


def test_first_and_last_cell_of_ssd512():
    boxes = paper_boxes(512, SSD512_MAPS) * 512
    assert_allclose(boxes[0], [4 - 17.92, 4 - 17.92, 4 + 17.92, 4 + 17.92], atol=1e-3)
    # Last map: one cell, sizes 460.8 and sqrt(460.8 * 537.6) = 497.721.
    assert_allclose(boxes[-4], [25.6, 25.6, 486.4, 486.4], atol=1e-3)
    assert_allclose(boxes[-3], [7.1396, 7.1396, 504.8604, 504.8604], atol=1e-3)


def test_a_map_that_is_not_square_keeps_ratios_in_pixels():
    # A picture twice as wide as high: a square of half its height is a quarter of its width.
    boxes = default_boxes([(1, 2)], [AnchorLevel(sizes=(0.5, 0.5), ratios=(1.0, 4.0))])
    first_cell = [[0.125, 0.25, 0.375, 0.75]] * 2 + [[0.0, 0.375, 0.5, 0.625]]
    second_cell = np.add(first_cell, [0.5, 0, 0.5, 0])
    assert_allclose(boxes, np.concatenate([first_cell, second_cell]))


def test_steps_and_offsets_place_the_centres_by_row_and_column():
    level = AnchorLevel(sizes=(0.2,), ratios=(1.0,), steps=(0.5, 0.4), offsets=(0.25, 0.5))
    boxes = default_boxes([(2, 2)], [level])
    assert_allclose((boxes[0, :2] + boxes[0, 2:]) / 2, [0.2, 0.125], rtol=1e-6)
    assert_allclose((boxes[-1, :2] + boxes[-1, 2:]) / 2, [0.6, 0.625], rtol=1e-6)


def test_every_size_has_the_first_ratio_and_the_first_size_every_other():
    level = AnchorLevel(sizes=(0.2, 0.4, 0.6), ratios=(4.0, 1.0))
    assert level.anchors_per_cell == 4
    boxes = default_boxes([(1, 1)], [level])
    sides = [(0.4, 0.1), (0.8, 0.2), (1.2, 0.3), (0.2, 0.2)]
    assert_allclose(boxes[:, 2:] - boxes[:, :2], sides, rtol=1e-6)


def test_anchors_reach_out_of_the_image():
    free = default_boxes([(3, 3), (1, 1)], chained_levels([0.4, 0.8, 1.05]))
    assert free.min() < 0
    assert free.max() > 1


def test_even_levels_have_the_scales_of_ssd300():
    for even, paper in zip(even_levels(6), paper_levels(300, SSD300_MAPS), strict=True):
        assert_allclose(even.sizes, paper.sizes)
        assert even.ratios == paper.ratios


def test_chained_levels_end_with_the_last_scale():
    levels = chained_levels([0.1, 0.3, 0.7], [1 / 4, 1 / 2])
    assert levels == (
        AnchorLevel((0.1, (0.1 * 0.3) ** 0.5), (1.0, 2.0, 0.5), steps=(1 / 4, 1 / 4)),
        AnchorLevel((0.3, (0.3 * 0.7) ** 0.5), (1.0, 2.0, 0.5), steps=(1 / 2, 1 / 2)),
    )


def test_even_levels_of_a_small_network():
    levels = even_levels(3)
    scales = [0.1, 0.2, 0.625, 1.05]
    assert_allclose(
        [level.sizes for level in levels],
        [(s, (s * t) ** 0.5) for s, t in itertools.pairwise(scales)],
    )


def test_a_resnet_at_300_pixels_does_not_get_the_steps_of_vgg():
    maps = [(side, side) for side in (19, 10, 5, 3, 2, 1)]
    assert paper_levels(300, maps) == even_levels(6)


@pytest.mark.parametrize(
    ("image_size", "maps", "count", "first_sizes"),
    [
        (300, SSD300_MAPS, 8732, (0.1, 0.2, 0.37, 0.54, 0.71, 0.88)),
        (512, MXNET_SSD512_MAPS, 24576, (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)),
        (512, SSD512_MAPS, 24564, (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)),
        (512, RESNET_MAPS, 6132, (0.1, 0.2, 0.37, 0.54, 0.71, 0.88)),
        (64, [(4, 4), (2, 2), (1, 1), (1, 1)], 4 * 16 + 6 * 4 + 8, (0.1, 0.2, 0.55, 0.9)),
    ],
)
def test_mxnet_levels(image_size, maps, count, first_sizes):
    levels = mxnet_levels(image_size, maps)
    assert default_boxes(maps, levels).shape == (count, 4)
    assert [level.sizes[0] for level in levels] == pytest.approx(first_sizes)
    # The last size ends where the next percents would begin.
    following = [*first_sizes[1:], 1.25 if len(maps) == 4 else 1.05]
    geometric = np.sqrt(np.multiply(first_sizes, following))
    assert_allclose([level.sizes[1] for level in levels], geometric)


def test_most_anchors_of_the_last_map_of_mxnets_ssd512_lie_outside():
    """Two cells of a step that is the whole image."""
    boxes = default_boxes(MXNET_SSD512_MAPS, mxnet_levels(512, MXNET_SSD512_MAPS))[-16:]
    centres = (boxes[::4, :2] + boxes[::4, 2:]) / 2
    assert_allclose(centres, [[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]], rtol=1e-6)


def test_mxnets_resnet_has_the_steps_of_its_maps():
    assert all(level.steps is None for level in mxnet_levels(300, RESNET_MAPS))
    assert mxnet_levels(300, SSD300_MAPS)[4].steps == (100 / 300, 100 / 300)


@pytest.mark.parametrize(
    ("image_size", "maps", "decimals"), [(300, SSD300_MAPS, 3), (512, SSD512_MAPS, 4)]
)
def test_legacy_levels_of_mxnet_have_rounded_sizes(image_size, maps, decimals):
    levels = mxnet_levels(image_size, maps)
    legacy = mxnet_legacy_levels(image_size, maps)
    exact = np.array([level.sizes for level in levels])
    np.testing.assert_array_equal([level.sizes for level in legacy], exact.round(decimals))
    assert [each._replace(sizes=()) for each in legacy] == [
        each._replace(sizes=()) for each in levels
    ]


@pytest.mark.parametrize("maps", [SSD512_MAPS, MXNET_SSD512_MAPS])
def test_the_cells_of_ssd512_double_from_map_to_map(maps):
    steps = [level.steps for level in mxnet_levels(512, maps)]
    assert steps == [(8 * 2**i / 512,) * 2 for i in range(7)]


@pytest.mark.parametrize(("count", "levels"), [(2, mxnet_levels), (5, mxnet_legacy_levels)])
def test_mxnet_has_no_levels_for_few_maps(count, levels):
    with pytest.raises(UserError, match=f"got {count} feature maps"):
        levels(64, [(2, 2)] * count)


def test_gluoncv_differs_from_the_paper_at_512_pixels():
    vgg, paper = gluoncv_levels(512, SSD512_MAPS), paper_levels(512, SSD512_MAPS)
    assert vgg[0].sizes == pytest.approx((51.2 / 512, (51.2 * 76.8) ** 0.5 / 512))
    assert vgg[1:] == paper[1:]
    resnet = gluoncv_levels(512, RESNET_MAPS)
    scales = [51.2, 102.4, 189.4, 276.4, 363.52, 450.6]
    assert [level.sizes[0] * 512 for level in resnet] == pytest.approx(scales)
    assert resnet[-1].sizes == pytest.approx((450.6 / 512, (450.6 * 492) ** 0.5 / 512))
    assert gluoncv_levels(300, SSD300_MAPS) == paper_levels(300, SSD300_MAPS)


def test_levels_and_maps_must_agree():
    with pytest.raises(UserError, match=r"got 3 levels for 2 feature maps"):
        default_boxes([(2, 2), (1, 1)], even_levels(3))
