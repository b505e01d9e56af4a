import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy_boxes import greedy_nms, grid_boxes

from ssd_jax.errors import UserError
from ssd_jax.ops import detect as detect_module
from ssd_jax.ops.boxes import VARIANCES, encode
from ssd_jax.ops.detect import class_scores, multibox_detection

ANCHORS = grid_boxes(np.random.default_rng(0), 40, cells=4)


def detect(box_deltas, class_logits, anchors, *, activation="softmax", **settings):
    scores = class_scores(class_logits, activation=activation)
    return multibox_detection(box_deltas, scores, anchors, **settings)


jit_detect = jax.jit(
    detect,
    static_argnames=(
        "candidates", "max_detections", "variances",
        "strict", "class_per_anchor", "force_suppress", "clip", "nms", "activation",
    ),
)  # fmt: skip


def run(deltas, logits, anchors=ANCHORS, *, score=0.01, overlap=0.45, **settings):
    return jit_detect(
        deltas, logits, anchors, score_threshold=score, iou_threshold=overlap, **settings
    )


def random_outputs(seed, *, num_classes=3, levels=3):
    """Few levels of logits and no offsets make many equal scores and equal boxes."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, levels, (len(ANCHORS), 1 + num_classes)).astype(np.float32)
    return np.zeros_like(ANCHORS), logits


def detect_reference(class_logits, *, score, overlap, candidates, maximum):
    """[(class, anchor)] in order. Boxes are the anchors themselves."""
    probabilities = np.asarray(jax.nn.softmax(class_logits))
    found = []
    for label, scores in enumerate(probabilities[:, 1:].T):
        order = np.argsort(-scores, kind="stable")[:candidates]
        keep = greedy_nms(ANCHORS[order], scores[order] > score, overlap)
        found += [(-scores[anchor], label, anchor) for anchor in order[keep]]
    return [(label, anchor, -score) for score, label, anchor in sorted(found)[:maximum]]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    overlap=st.sampled_from([0.3, 0.45, 0.7]),
    score=st.sampled_from([0.01, 0.2]),
    limited=st.booleans(),
)
def test_equals_numpy_with_ties(seed, overlap, score, limited):
    deltas, logits = random_outputs(seed)
    candidates, maximum = (10, 12) if limited else (400, 200)
    expected = detect_reference(
        logits, score=score, overlap=overlap, candidates=candidates, maximum=maximum
    )
    limits = {"candidates": 10, "max_detections": 12} if limited else {}
    got = run(deltas, logits, score=score, overlap=overlap, **limits)
    assert got.boxes.shape == (maximum, 4)
    assert_array_equal(got.valid, np.arange(maximum) < len(expected))
    labels, anchors, scores = zip(*expected, strict=True)
    count = len(expected)
    assert_array_equal(got.labels[:count], labels)
    assert_array_equal(got.boxes[:count], ANCHORS[list(anchors)])
    assert_allclose(got.scores[:count], scores, rtol=1e-6)


def test_a_score_that_is_no_number_displaces_none():
    """It is not kept; but ranked first, it would fill the places of those that are."""
    logits = np.zeros((len(ANCHORS), 4), np.float32)
    logits[:, 0] = 20
    logits[:20] = np.nan
    logits[30, 1] = 40
    found = run(np.zeros_like(ANCHORS), logits, score=0.5)
    assert found.valid.sum() == 1
    assert_allclose(found.boxes[0], ANCHORS[30], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    overlap=st.sampled_from([0.25, 0.5]),
    force_suppress=st.booleans(),
)
def test_the_best_class_of_each_anchor_equals_numpy_with_ties(seed, overlap, force_suppress):
    deltas, logits = random_outputs(seed)
    foreground = np.asarray(jax.nn.softmax(logits))[:, 1:]
    labels, scores = foreground.argmax(axis=1), foreground.max(axis=1)
    order = np.argsort(-scores, kind="stable")[:30]
    rivals = [labels[order] == label for label in range(3)]
    if force_suppress:
        rivals = [np.ones(len(order), bool)]
    good = scores[order] >= 0.2
    kept = [greedy_nms(ANCHORS[order], good & among, overlap, strict=False) for among in rivals]
    expected = order[np.any(kept, axis=0)][:12]
    got = run(
        deltas, logits, score=0.2, overlap=overlap, strict=False, class_per_anchor="best",
        force_suppress=force_suppress, candidates=30, max_detections=12,
    )  # fmt: skip
    count = len(expected)
    assert_array_equal(got.valid, np.arange(12) < count)
    assert_array_equal(got.boxes[:count], ANCHORS[expected])
    assert_array_equal(got.labels[:count], labels[expected])
    assert_allclose(got.scores[:count], scores[expected], rtol=1e-6)


def test_a_score_at_the_threshold_is_kept_unless_strict():
    quarters = np.zeros((len(ANCHORS), 4), np.float32)  # as logits, four equal classes
    for strict in (True, False):
        got = run(np.zeros_like(ANCHORS), quarters, score=0.25, strict=strict)
        assert got.valid.any() == (not strict)
        impossible = np.full((len(ANCHORS), 4), -1e3, np.float32)
        words = {"activation": "sigmoid", "strict": strict}
        assert run(np.zeros_like(ANCHORS), impossible, score=0.0, **words).valid.any() == (
            not strict
        )


def test_of_equal_classes_the_first_is_the_best():
    logits = np.tile(np.array([9, -9, -9, -9], np.float32), (len(ANCHORS), 1))
    logits[3] = [-9, -9, 5, 5]
    got = run(np.zeros_like(ANCHORS), logits, class_per_anchor="best")
    assert_array_equal(got.valid, np.arange(200) < 1)
    assert got.labels[0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_per_anchor": "first"}, "expected one of all, best"),
        ({"force_suppress": True}, "needs one class per anchor"),
        ({"nms": "soft"}, "expected one of hard, linear, gaussian"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        detect(*random_outputs(0), ANCHORS, **settings)


def test_finds_the_boxes_that_were_encoded():
    boxes = np.array([[0.1, 0.1, 0.4, 0.5], [0.5, 0.4, 0.9, 0.8]], np.float32)
    anchors = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    logits = np.array([[0, 9, 0], [0, 0, 8]], np.float32)
    for variances in (VARIANCES, (1.0, 1.0, 0.5, 0.5)):
        deltas = encode(boxes, anchors, variances)
        got = run(deltas, logits, anchors, score=0.5, variances=variances)
        assert_array_equal(np.flatnonzero(got.valid), [0, 1])
        assert_array_equal(got.labels[:2], [0, 1])
        assert_allclose(got.boxes[:2], boxes, atol=1e-6)


def test_soft_suppression_keeps_twins_at_lower_scores():
    anchors = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32)
    logits = np.log(np.array([[1, 9], [2, 8], [3, 7]], np.float32))
    deltas = np.zeros_like(anchors)
    twin = 0.8 * np.exp(-2.0)
    for words, scores in (
        ({}, [0.9, 0.7]),
        ({"nms": "gaussian"}, [0.9, 0.7, twin]),
        ({"nms": "gaussian", "score": 0.2}, [0.9, 0.7]),
        ({"nms": "gaussian", "class_per_anchor": "best"}, [0.9, 0.7, twin]),
        ({"nms": "linear"}, [0.9, 0.7]),
    ):
        got = run(deltas, logits, anchors, **words)
        assert_allclose(got.scores[got.valid], scores, rtol=1e-5)


def test_sigmoid_scores_are_each_for_itself():
    logits = np.array([[50, 0, np.log(3), -9]], np.float32)  # background has no say
    got = run(np.zeros((1, 4)), logits, ANCHORS[:1], activation="sigmoid")
    assert_allclose(got.scores[got.valid], [0.75, 0.5], rtol=1e-6)
    assert_array_equal(got.labels[:2], [1, 0])


def test_a_box_may_be_found_as_two_classes():
    logits = np.tile(np.array([9, -9, -9, -9], np.float32), (len(ANCHORS), 1))
    logits[3] = [-9, 5, -9, 5]
    got = run(np.zeros_like(ANCHORS), logits)
    assert_array_equal(np.flatnonzero(got.valid), [0, 1])
    assert_array_equal(got.labels[:2], [0, 2])
    assert_array_equal(got.boxes[:2], ANCHORS[[3, 3]])


def test_boxes_are_clipped_to_the_image_when_asked():
    _, logits = random_outputs(0)
    # Sizes times exp(4), far out of the image; 1e6 asks for more than float32 can hold.
    for size in (20, 1e6):
        deltas = np.zeros_like(ANCHORS) + np.array([0, 0, size, size], np.float32)
        boxes = np.asarray(run(deltas, logits).boxes)
        assert boxes.min() == 0
        assert boxes.max() == 1
    deltas = np.zeros_like(ANCHORS) + np.array([0, 0, 20, 20], np.float32)
    assert np.asarray(run(deltas, logits, clip=False).boxes).max() > 1


def test_boxes_are_compared_as_they_are_cut_to_the_image():
    # The same part of the image; whole, they overlap by 1/5.
    anchors = np.array([[0.5, 0, 1, 1], [0.5, 0, 3, 1]], np.float32)
    logits = np.array([[0, 9], [0, 8]], np.float32)
    for clip, count in ((True, 1), (False, 2)):
        got = run(np.zeros((2, 4), np.float32), logits, anchors, clip=clip)
        assert got.valid.sum() == count


def test_padding_is_zero_and_marked():
    got = run(*random_outputs(1))  # room for 200, and 3 * 40 candidates
    count = int(got.valid.sum())
    assert 0 < count < 120
    assert_array_equal(got.valid, np.arange(200) < count)
    for rows in got[:3]:
        assert_array_equal(rows[count:], 0)


def test_a_sure_background_gives_nothing():
    deltas, logits = random_outputs(1)
    logits[:, 0] = 50
    assert not run(deltas, logits).valid.any()


def test_half_precision_logits():
    deltas, logits = random_outputs(2)
    half = run(deltas, jnp.asarray(logits, jnp.bfloat16))
    jax.tree.map(assert_array_equal, half, run(deltas, logits))
    assert half.scores.dtype == jnp.float32


@pytest.mark.parametrize("nms", ["hard", "gaussian"])
def test_places_that_no_score_fills_make_no_difference(nms, monkeypatch):
    # Of 40 places a CPU gives a class 5, 20 or all, as its scores reach the threshold.
    rng = np.random.default_rng(0)
    logits = np.full((40, 6), -9, np.float32)
    for channel, count in enumerate((0, 5, 6, 20, 40), start=1):
        logits[rng.permutation(40)[:count], channel] = rng.uniform(-1, 1, count)
    batch = np.stack([logits, np.roll(logits, 2, axis=1)])

    def found():
        words = {"activation": "sigmoid", "nms": nms, "candidates": 40}
        one = functools.partial(detect, np.zeros_like(ANCHORS), anchors=ANCHORS, **words)
        return jax.jit(jax.vmap(lambda logits: one(class_logits=logits)))(batch)

    with_fewer = found()
    monkeypatch.setattr(detect_module, "_FEWER", ())
    jax.tree.map(assert_array_equal, with_fewer, found())
    assert with_fewer.valid.sum() > 20


@pytest.mark.parametrize(("platform", "at_once"), [("cpu", 1), ("cuda", 128)])
def test_of_many_classes_some_at_a_time_are_suppressed(platform, at_once):
    shape = jax.ShapeDtypeStruct
    args = shape((40, 4), np.float32), shape((40, 301), np.float32), shape((40, 4), np.float32)
    program = jax.jit(functools.partial(detect, candidates=40))
    text = program.trace(*args).lower(lowering_platforms=(platform,)).as_text()
    pairs = {int(rows or 1) for rows in re.findall(r"tensor<(?:(\d+)x)?40x40x2xf32>", text)}
    assert max(pairs) == at_once


def test_on_eight_devices_equal_and_without_communication(mesh_of_eight):
    outputs = [random_outputs(seed) for seed in range(16)]
    deltas, logits = map(np.stack, zip(*outputs, strict=True))
    per_image = functools.partial(detect, candidates=20, max_detections=30)
    batched = jax.vmap(per_image, in_axes=(0, 0, None))
    sharded = jax.jit(
        jax.shard_map(
            batched,
            mesh=mesh_of_eight,
            in_specs=(jax.P("data"), jax.P("data"), jax.P()),
            out_specs=jax.P("data"),
        )
    )
    program = sharded.lower(deltas, logits, ANCHORS).compile()
    text = program.as_text()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
    got, expected = sharded(deltas, logits, ANCHORS), jax.jit(batched)(deltas, logits, ANCHORS)
    jax.tree.map(assert_array_equal, got, expected)
    assert {shard.data.shape for shard in got.boxes.addressable_shards} == {(2, 30, 4)}


def test_outputs_that_do_not_belong_together_are_refused():
    unchecked = inspect.unwrap(multibox_detection)  # by the type checker of the tests
    with pytest.raises(UserError, match="4 box deltas, 5 rows of probabilities and 4 anchors"):
        unchecked(np.zeros((4, 4)), np.zeros((5, 3)), np.zeros((4, 4)))
    with pytest.raises(UserError, match="activation: got 'softmx', expected one of softmax"):
        class_scores(np.zeros((2, 3)), activation="softmx")
