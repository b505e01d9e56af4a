import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from numpy_boxes import grid_boxes, iou_table

from ssd_jax.ops import boxes as ops

iou_matrix = jax.jit(ops.iou_matrix)
encode = jax.jit(ops.encode, static_argnums=2)
decode = jax.jit(ops.decode)
finite = st.floats(-(2.0**100), 2.0**100, width=32)
any_boxes = hnp.arrays(np.float32, (3, 4), elements=finite)
offsets = hnp.arrays(np.float32, (3, 4), elements=st.floats(-5, 5, width=32))


def test_formats_by_example():
    assert_allclose(ops.xyxy_to_cxcywh(np.array([0.1, 0.2, 0.5, 0.4])), [0.3, 0.3, 0.4, 0.2])
    assert_allclose(ops.cxcywh_to_xyxy(np.array([0.3, 0.3, 0.4, 0.2])), [0.1, 0.2, 0.5, 0.4])


def test_formats_keep_leading_axes():
    boxes = np.random.default_rng(0).random((2, 3, 4), np.float32)
    assert_allclose(ops.xyxy_to_cxcywh(ops.cxcywh_to_xyxy(boxes)), boxes, atol=1e-6)


def test_area_of_a_box_and_of_none():
    boxes = np.array([[0, 0, 0.5, 0.25], [0.5, 0, 0.5, 1], [0.5, 0.5, 0.25, 0.25]])
    assert_array_equal(ops.area(boxes), [0.125, 0, 0])


def test_clip_keeps_the_part_in_the_image():
    assert_array_equal(ops.clip(np.array([-0.5, 0.25, 0.5, 1.5])), [0, 0.25, 0.5, 1])


def test_iou_by_example():
    half = np.array([[0, 0, 0.5, 1]], np.float32)
    others = np.array(
        [[0, 0, 1, 1], [0, 0, 0.5, 1], [0.25, 0, 0.75, 1], [0.5, 0, 1, 1]], np.float32
    )
    assert_allclose(iou_matrix(half, others), [[0.5, 1, 1 / 3, 0]])


def test_iou_of_boxes_without_area_is_zero():
    point = np.full((1, 4), 0.5, np.float32)
    assert_array_equal(iou_matrix(point, point), [[0]])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_iou_equals_numpy_and_is_symmetric(seed):
    rng = np.random.default_rng(seed)
    a, b = grid_boxes(rng, 9), grid_boxes(rng, 5)
    overlap = iou_matrix(a, b)
    assert_array_equal(overlap, iou_table(a, b))
    assert_array_equal(overlap, iou_matrix(b, a).T)


def test_iou_of_each_box_with_its_own_is_the_diagonal_of_the_matrix():
    rng = np.random.default_rng(0)
    a, b = grid_boxes(rng, 9), grid_boxes(rng, 9)
    assert_array_equal(ops.iou(a, b), np.diag(iou_matrix(a, b)))


def test_encode_by_example():
    anchor = np.array([[0.2, 0.2, 0.6, 0.4]], np.float32)  # centre (0.4, 0.3), size (0.4, 0.2)
    box = np.array([[0.3, 0.3, 0.7, 0.7]], np.float32)  # centre (0.5, 0.5), size (0.4, 0.4)
    expected = [[0.1 / 0.4 / 0.1, 0.2 / 0.2 / 0.1, 0, np.log(2) / 0.2]]
    assert_allclose(encode(box, anchor), expected, rtol=1e-5, atol=1e-6)
    assert_allclose(encode(box, anchor, (1.0, 1.0, 1.0, 1.0)), [[0.25, 1, 0, np.log(2)]], atol=1e-6)


def test_no_offset_is_the_anchor_itself():
    anchors = grid_boxes(np.random.default_rng(0), 20)
    assert_array_equal(decode(np.zeros_like(anchors), anchors), anchors)


@pytest.mark.parametrize(("offset", "times"), [(np.log(1000) / 0.2, 1e3), (1e30, 1e6)])
def test_a_box_is_at_most_a_million_times_as_wide_as_its_anchor(offset, times):
    box = decode(np.array([0, 0, offset, 0], np.float32), np.array([-0.5, 0, 0.5, 1], np.float32))
    assert box[2] - box[0] == pytest.approx(times, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(offsets)
def test_encode_is_the_inverse_of_decode(deltas):
    anchors = np.array([[0.1, 0.1, 0.4, 0.3], [0, 0, 1, 1], [-0.1, 0.5, 0.1, 0.8]], np.float32)
    assert_allclose(encode(decode(deltas, anchors), anchors), deltas, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(any_boxes, any_boxes)
def test_every_finite_input_gives_a_finite_result(values, anchors):
    assert np.isfinite(encode(values, anchors)).all()
    anchors = np.array([[0.1, 0.1, 0.4, 0.3], [0, 0, 1, 1], [0.5, 0.5, 0.5, 0.5]], np.float32)
    assert np.isfinite(decode(values, anchors)).all()
