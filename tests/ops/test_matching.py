import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy_boxes import grid_boxes, iou_table

from ssd_jax.ops.boxes import decode
from ssd_jax.ops.matching import greedy_pairs, match

ANCHORS, OBJECTS = 50, 6
MXNET = {"strict": True, "empty_is_negative": False}
jit_match = jax.jit(
    match,
    static_argnames=("iou_threshold", "negative_iou_threshold", "strict", "empty_is_negative"),
)


def match_reference(anchors, boxes, valid, threshold, *, strict=False):
    """(index of the object or -1 for each anchor, largest IoU for each anchor)."""
    overlap = iou_table(anchors, boxes)
    overlap[:, ~valid] = -1
    index = np.full(len(anchors), -1)
    for _ in boxes:
        free = overlap.copy()
        free[index >= 0] = -1
        free[:, index[index >= 0]] = -1
        anchor, box = np.unravel_index(free.argmax(), free.shape)  # lowest anchor, then lowest box
        if free[anchor, box] > 1e-6:
            index[anchor] = box
    best = overlap.max(axis=1)
    by_threshold = (index < 0) & (best > threshold if strict else best >= threshold)
    index[by_threshold] = overlap.argmax(axis=1)[by_threshold]
    return index, best


def random_problem(seed):
    rng = np.random.default_rng(seed)
    anchors = grid_boxes(rng, ANCHORS)
    boxes = grid_boxes(rng, OBJECTS)
    labels = rng.integers(0, 20, OBJECTS)
    return anchors, boxes, labels, rng.random(OBJECTS) < 0.7


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_numpy_with_ties_and_padding(seed):
    anchors, boxes, labels, valid = random_problem(seed)
    index, best = match_reference(anchors, boxes, valid, 0.5)
    targets = jit_match(anchors, boxes, labels, valid)
    assert_array_equal(targets.positive, index >= 0)
    assert_array_equal(targets.class_ids, np.where(index >= 0, labels[index] + 1, 0))
    assert_array_equal(targets.negative, (index < 0) & (best < 0.5))
    assert_array_equal(np.asarray(targets.box_deltas)[index < 0], 0)
    taken = (index >= 0) & (anchors[:, 2:] > anchors[:, :2]).all(axis=1)
    found = np.asarray(decode(targets.box_deltas, anchors))
    assert_allclose(found[taken], boxes[index][taken], atol=1e-5)


def test_vmap_equals_one_by_one():
    problems = [random_problem(seed) for seed in range(3)]
    together = jax.jit(jax.vmap(match))(*map(np.stack, zip(*problems, strict=True)))
    alone = [jit_match(*problem) for problem in problems]
    jax.tree.map(assert_array_equal, together, jax.tree.map(lambda *rows: np.stack(rows), *alone))


def test_each_object_has_an_anchor_of_its_own():
    # Both objects overlap the first anchor most; the second object overlaps it more and wins it.
    anchors = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0, 1, 0.5]], np.float32)
    boxes = np.array([[0, 0, 0.375, 0.5], [0, 0, 0.5, 0.5]], np.float32)
    targets = jit_match(anchors, boxes, np.array([7, 8]), np.array([True, True]))
    assert_array_equal(targets.class_ids, [9, 8, 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_strict_thresholds_equal_numpy(seed):
    anchors, boxes, labels, valid = random_problem(seed)
    index, best = match_reference(anchors, boxes, valid, 0.5, strict=True)
    targets = jit_match(anchors, boxes, labels, valid, negative_iou_threshold=0.25, **MXNET)
    assert_array_equal(targets.class_ids, np.where(index >= 0, labels[index] + 1, 0))
    assert_array_equal(targets.negative, (index < 0) & (best < 0.25) & valid.any())


@pytest.mark.parametrize("strict", [False, True])
def test_an_anchor_at_the_threshold_is_positive_or_when_strict_ignored(strict):
    anchors = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.25, 1]], np.float32)
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    targets = jit_match(anchors, boxes, np.array([0, 0]), np.array([True, False]), strict=strict)
    assert_array_equal(targets.positive, [True, not strict, False])
    assert_array_equal(targets.negative, [False, False, True])


def test_a_speck_has_an_anchor_too():
    # 3 x 3 of 1000 x 1000 pixels, an IoU of 0.00001 with the only anchor.
    anchors = np.array([[0, 0, 1, 1]], np.float32)
    speck = np.array([[0.5, 0.5, 0.503, 0.503]], np.float32)
    assert jit_match(anchors, speck, np.array([0]), np.array([True])).positive.all()


def test_an_object_that_overlaps_no_anchor_stays_unmatched():
    anchors = np.array([[0, 0, 0.5, 0.5]] * 3, np.float32)
    far = np.array([[0.75, 0.75, 1, 1]] * 2, np.float32)
    assert not jit_match(anchors, far, np.array([0, 1]), np.array([True, True])).positive.any()


@pytest.mark.parametrize("empty_is_negative", [True, False])
def test_without_objects_all_anchors_are_negative_or_all_ignored(empty_is_negative):
    anchors, boxes, labels, _ = random_problem(0)
    nobody = np.zeros(OBJECTS, bool)
    targets = jit_match(anchors, boxes, labels, nobody, empty_is_negative=empty_is_negative)
    assert not targets.positive.any()
    assert_array_equal(targets.negative, empty_is_negative)
    assert_array_equal(targets.class_ids, 0)
    assert_array_equal(targets.box_deltas, 0)


def test_padding_may_hold_anything():
    anchors, boxes, labels, _ = random_problem(1)
    valid = np.arange(OBJECTS) < 3
    other = np.where(valid[:, None], boxes, np.nan).astype(np.float32)
    targets = jit_match(anchors, boxes, labels, valid)
    jax.tree.map(assert_array_equal, targets, jit_match(anchors, other, labels, valid))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_crowds_equal_numpy(seed):
    """Where objects lie upon each other, each waits for another, and all of it in one block."""
    rng = np.random.default_rng(seed)
    anchors = grid_boxes(rng, ANCHORS)
    boxes = grid_boxes(rng, 3)[rng.integers(0, 3, 20)]
    valid = rng.random(20) < 0.8
    index, _ = match_reference(anchors, boxes, valid, 0.5)
    targets = jit_match(anchors, boxes, np.arange(20), valid)
    assert_array_equal(targets.class_ids - 1, index)


@pytest.mark.parametrize(
    ("iou", "own_anchor"),
    [
        ([[np.nan, 0.6], [0.1, 0.2]], [1, 0]),  # what is unknown is no overlap
        ([[0.3, 0.9, 0.5], [0.2, 0.8, 0.7]], [-1, 0, 1]),  # more objects than anchors
        (np.full((3, 2), 0.5), [0, 1]),
        (np.zeros((3, 2)), [-1, -1]),
        ([[0.9], [np.inf]], [1]),
    ],
)
def test_pairs(iou, own_anchor):
    assert_array_equal(jax.jit(greedy_pairs)(np.asarray(iou, np.float32)), own_anchor)


def test_devices_match_their_images_without_each_other(mesh_of_eight):
    rows = jax.sharding.NamedSharding(mesh_of_eight, jax.P("data"))
    anchors, *objects = random_problem(0)
    batch = jax.device_put([np.stack([x] * 8) for x in objects], rows)
    match_all = jax.vmap(functools.partial(match, anchors))
    program = jax.jit(
        jax.shard_map(
            match_all, mesh=mesh_of_eight, in_specs=jax.P("data"), out_specs=jax.P("data")
        )
    )
    text = program.lower(*batch).compile().as_text()
    assert "num_partitions=8" in text
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


def test_no_row_is_as_no_valid_row():
    anchors = grid_boxes(np.random.default_rng(0), ANCHORS, cells=4)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool)
    invalid = [np.zeros((1, *each.shape[1:]), each.dtype) for each in none]
    jax.tree.map(assert_array_equal, jit_match(anchors, *none), jit_match(anchors, *invalid))


def test_pairs_are_the_same_with_numbers_of_64_bits():
    iou = jax.numpy.asarray(np.random.default_rng(0).random((20, 5), np.float32))
    expected = np.asarray(greedy_pairs(iou))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(greedy_pairs(iou), expected)
