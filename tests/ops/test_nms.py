import functools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy_boxes import greedy_nms, grid_boxes

from ssd_jax.ops.nms import nms

COUNT = 40
jit_nms = jax.jit(nms, static_argnames="strict")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 0.7, 1.0]),
    cells=st.sampled_from([2, 4, 16]),
)
def test_equals_greedy_numpy_with_ties(seed, threshold, cells):
    rng = np.random.default_rng(seed)
    boxes, valid = grid_boxes(rng, COUNT, cells=cells), rng.random(COUNT) < 0.8
    keep = jit_nms(boxes, valid, iou_threshold=threshold)
    assert_array_equal(keep, greedy_nms(boxes, valid, threshold))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), strict=st.booleans())
def test_labels_keep_apart_as_greedy_numpy_within_each(seed, strict):
    rng = np.random.default_rng(seed)
    boxes, labels = grid_boxes(rng, COUNT, cells=4), rng.integers(0, 3, COUNT)
    valid = rng.random(COUNT) < 0.8
    keep = jit_nms(boxes, valid, iou_threshold=0.5, strict=strict, labels=labels)
    for label in range(3):
        expected = greedy_nms(boxes, valid & (labels == label), 0.5, strict=strict)
        assert_array_equal(keep & (labels == label), expected)


def test_a_chain_is_resolved_from_its_head():
    # Each box overlaps its neighbour by 7/9 and the next but one by 6/10: every other one stays.
    left = np.arange(COUNT, dtype=np.float32) / 64
    boxes = np.stack([left, 0 * left, left + 8 / 64, 0 * left + 1], axis=1)
    everything = np.ones(COUNT, bool)
    keep = jit_nms(boxes, everything, iou_threshold=0.7)
    assert_array_equal(keep, np.arange(COUNT) % 2 == 0)


def test_an_overlap_at_the_threshold_is_a_reason_to_go_unless_strict():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.25, 1]], np.float32)
    everything = np.ones(3, bool)
    for threshold, strict, second in ((0.5, True, True), (0.5, False, False), (0.49, True, False)):
        keep = jit_nms(boxes, everything, iou_threshold=threshold, strict=strict)
        assert_array_equal(keep, [True, second, True])


def test_what_is_not_valid_neither_stays_nor_suppresses():
    boxes = np.array([[0, 0, 1, 1]] * 3, np.float32)
    keep = jit_nms(boxes, np.array([False, True, True]), iou_threshold=0.5)
    assert_array_equal(keep, [False, True, False])
    assert not jit_nms(boxes, np.zeros(3, bool), iou_threshold=0.5).any()


def test_vmap_equals_greedy_numpy():
    rng = np.random.default_rng(0)
    boxes = np.stack([grid_boxes(rng, COUNT, cells=cells) for cells in (3, 6, 12)])
    valid = rng.random((3, COUNT)) < 0.9
    together = jax.jit(jax.vmap(functools.partial(nms, iou_threshold=0.45)))(boxes, valid)
    expected = [greedy_nms(*image, 0.45) for image in zip(boxes, valid, strict=True)]
    assert_array_equal(together, expected)
