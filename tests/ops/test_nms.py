import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy_boxes import greedy_nms, grid_boxes, iou_table

from ssd_jax.errors import UserError
from ssd_jax.ops.nms import nms, soft_nms

COUNT = 40
jit_nms = jax.jit(nms, static_argnames="strict")
jit_soft_nms = jax.jit(soft_nms, static_argnames=("kind", "strict"))


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


def soft_reference(boxes, scores, labels, factor):
    """The paper's pseudo-code, in float64."""
    overlap, scores = np.float64(iou_table(boxes, boxes)), np.float64(scores)
    waiting = list(range(len(boxes)))
    while waiting:
        best = max(waiting, key=lambda i: (scores[i], -i))
        waiting.remove(best)
        for i in waiting:
            if labels[i] == labels[best]:
                scores[i] *= factor(overlap[best, i])
    return scores


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["linear", "gaussian"]))
def test_soft_suppression_equals_its_pseudo_code(seed, kind):
    rng = np.random.default_rng(seed)
    boxes, labels = grid_boxes(rng, COUNT, cells=4), rng.integers(0, 2, COUNT)
    scores = rng.random(COUNT).astype(np.float32)
    factors = {
        "linear": lambda iou: 1 - iou if iou > np.float32(0.3) else 1.0,
        "gaussian": lambda iou: np.exp(-(iou**2) / 0.25),
    }
    found = jit_soft_nms(boxes, scores, kind=kind, iou_threshold=0.3, sigma=0.25, labels=labels)
    assert_allclose(found, soft_reference(boxes, scores, labels, factors[kind]), rtol=1e-4)


def test_soft_suppression_lowers_a_twin_and_leaves_the_rest():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]], np.float32)
    scores = np.array([0.8, 0.5, 0.25], np.float32)
    assert_allclose(jit_soft_nms(boxes, scores, kind="linear"), [0.8, 0, 0.25], rtol=1e-6)
    expected = [0.8, 0.5 * np.exp(-2), 0.25]
    assert_allclose(jit_soft_nms(boxes, scores, kind="gaussian"), expected, rtol=1e-6)
    half = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1], [2, 2, 3, 3]], np.float32)
    for strict, second in ((True, 0.5), (False, 0.25)):
        found = jit_soft_nms(half, scores, kind="linear", iou_threshold=0.5, strict=strict)
        assert_allclose(found, [0.8, second, 0.25], rtol=1e-6)


def test_an_unknown_kind_is_refused():
    boxes, scores = np.zeros((2, 4), np.float32), np.ones(2, np.float32)
    with pytest.raises(UserError, match="kind: got 'gausian', expected one of gaussian, linear"):
        soft_nms(boxes, scores, kind="gausian")


def test_scores_are_the_same_with_numbers_of_64_bits():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.random((9, 2, 2), np.float32), axis=1).reshape(9, 4)
    scores = rng.random(9, np.float32)
    expected = np.asarray(soft_nms(boxes, scores, kind="gaussian"))
    with jax.enable_x64(True):
        lowered = soft_nms(boxes, scores, kind="gaussian")
        assert lowered.dtype == np.float32
        np.testing.assert_allclose(lowered, expected, rtol=1e-6)
