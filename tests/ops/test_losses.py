import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssd_jax.errors import UserError
from ssd_jax.ops.box_losses import BOX_LOSSES, overlap_loss
from ssd_jax.ops.boxes import decode, iou
from ssd_jax.ops.losses import CLASS_LOSSES, mine_hard_negatives, multibox_loss, sigmoid_loss
from ssd_jax.ops.matching import match
from ssd_jax.types import Targets

ANCHORS, CHANNELS = 60, 5
mine = jax.jit(mine_hard_negatives, static_argnames=("negatives_per_positive", "minimum"))


@jax.jit
def loss_and_gradient(predictions, targets):
    def total(predictions):
        sums = multibox_loss(*predictions, targets, square_anchors())
        return sums.class_loss + sums.box_loss, sums

    return jax.value_and_grad(total, has_aux=True)(predictions)


def random_targets(rng, *, share_positive=0.1, share_negative=0.8):
    kind = rng.random(ANCHORS)
    positive = kind < share_positive
    return Targets(
        box_deltas=jnp.asarray(rng.normal(size=(ANCHORS, 4)) * positive[:, None], jnp.float32),
        class_ids=jnp.asarray(np.where(positive, rng.integers(1, CHANNELS, ANCHORS), 0)),
        positive=jnp.asarray(positive),
        negative=jnp.asarray(~positive & (kind < share_positive + share_negative)),
    )


def random_predictions(rng, *, scale=1.0):
    deltas, logits = rng.normal(size=(ANCHORS, 4)), rng.normal(size=(ANCHORS, CHANNELS)) * scale
    return jnp.asarray(deltas, jnp.float32), jnp.asarray(logits, jnp.float32)


def mining_reference(background, positive, negative, ratio, minimum):
    hardest_first = np.argsort(np.where(negative, background, np.inf), kind="stable")
    chosen = np.zeros(len(background), bool)
    chosen[hardest_first[: max(int(ratio * positive.sum()), minimum)]] = True
    return chosen & negative


def loss_reference(box_deltas, class_logits, targets):
    deltas, logits = np.float64(box_deltas), np.float64(class_logits)
    wanted, class_ids, positive, negative = (np.asarray(x) for x in targets)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = positive | mining_reference(log_p[:, 0], positive, negative, 3, 3)
    error = np.abs(deltas - wanted)[positive]
    smooth_l1 = np.where(error < 1, error**2 / 2, error - 0.5)
    class_loss = -log_p[np.arange(ANCHORS), class_ids][chosen].sum()
    return class_loss, smooth_l1.sum(), positive.sum(), chosen.sum(), (error > 0).sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    share_positive=st.sampled_from([0.0, 0.02, 0.2, 0.6]),
    decimals=st.sampled_from([0, 1, 6]),
    ratio_and_minimum=st.sampled_from([(3, 3), (2.5, 0)]),
)
def test_mining_equals_the_first_places_of_a_stable_sort(
    seed, share_positive, decimals, ratio_and_minimum
):
    rng = np.random.default_rng(seed)
    targets = random_targets(rng, share_positive=share_positive, share_negative=0.35)
    background = rng.random(ANCHORS).round(decimals).astype(np.float32)
    positive, negative = np.asarray(targets.positive), np.asarray(targets.negative)
    ratio, minimum = ratio_and_minimum
    chosen = mine(background, positive, negative, negatives_per_positive=ratio, minimum=minimum)
    expected = mining_reference(background, positive, negative, ratio, minimum)
    assert_array_equal(chosen, expected)


def test_mining_takes_three_for_each_positive_and_never_a_positive():
    background = 1 - jnp.arange(12.0) / 16
    positive = jnp.arange(12) >= 10  # also the anchors that look least like background
    chosen = mine(background, positive, ~positive)
    assert_array_equal(np.flatnonzero(chosen), [4, 5, 6, 7, 8, 9])
    for ratio, first in ((1, 8), (1.75, 7)):  # 1.75 for each of two are three
        chosen = mine(background, positive, ~positive, negatives_per_positive=ratio, minimum=0)
        assert_array_equal(np.flatnonzero(chosen), np.arange(first, 10))


def test_of_equal_probabilities_the_lower_index_wins():
    nobody = jnp.zeros(5, bool)
    background = jnp.array([0.5, 0.25, 0.5, 0.5, 0.5])
    assert_array_equal(np.flatnonzero(mine(background, nobody, ~nobody)), [0, 1, 2])
    for extreme in (0.0, 1.0):
        background = jnp.full(5, extreme)
        assert_array_equal(np.flatnonzero(mine(background, nobody, ~nobody)), [0, 1, 2])


@pytest.mark.parametrize("ratio", [0, -1.0])
def test_without_a_ratio_all_negatives_are_chosen(ratio):
    positive, negative = jnp.arange(9) < 2, jnp.arange(9) > 5
    chosen = mine(jnp.ones(9), positive, negative, negatives_per_positive=ratio)
    assert_array_equal(chosen, negative)


def test_an_image_without_objects_gets_the_minimum():
    nobody = jnp.zeros(9, bool)
    for minimum in (0, 3):
        chosen = mine(jnp.ones(9), nobody, ~nobody, minimum=minimum)
        assert chosen.sum() == minimum


def test_mining_is_the_same_with_numbers_of_64_bits():
    background, positive = jnp.linspace(0, 1, 9, dtype=jnp.float32), jnp.arange(9) < 2
    expected = np.asarray(mine(background, positive, ~positive))
    with jax.enable_x64(True):
        assert_array_equal(mine(background, positive, ~positive), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share_positive=st.sampled_from([0.0, 0.1, 0.5]))
def test_loss_equals_numpy(seed, share_positive):
    rng = np.random.default_rng(seed)
    predictions, targets = (
        random_predictions(rng),
        random_targets(rng, share_positive=share_positive),
    )
    (_, sums), _ = loss_and_gradient(predictions, targets)
    class_loss, box_loss, *counts = loss_reference(*predictions, targets)
    assert_allclose(sums.class_loss, class_loss, rtol=1e-4)
    assert_allclose(sums.box_loss, box_loss, rtol=1e-4, atol=1e-6)
    assert_array_equal(sums[2:], counts)


def test_an_offset_that_is_exactly_right_does_not_count():
    targets = random_targets(np.random.default_rng(7), share_positive=0.5)
    _, logits = random_predictions(np.random.default_rng(7))
    # One part in ten million is what float32 rounds away, one in ten thousand is an error.
    off = (targets.box_deltas * (1 + 1e-7)).at[:, 0].multiply(1 + 1e-4)
    (_, sums), _ = loss_and_gradient((off, logits), targets)
    assert sums.num_box_errors == sums.num_positive


def test_a_perfect_prediction_costs_nothing():
    targets = random_targets(np.random.default_rng(0))
    logits = 100.0 * jax.nn.one_hot(targets.class_ids, CHANNELS)
    (loss, _), gradients = loss_and_gradient((targets.box_deltas, logits), targets)
    assert loss < 1e-6
    for gradient in gradients:
        assert_allclose(gradient, 0, atol=1e-6)


def test_only_chosen_anchors_get_a_gradient():
    rng = np.random.default_rng(3)
    (box_deltas, logits), targets = random_predictions(rng), random_targets(rng)
    _, (box_gradient, logit_gradient) = loss_and_gradient((box_deltas, logits), targets)
    hard = mine(jax.nn.softmax(logits)[:, 0], targets.positive, targets.negative)
    assert_array_equal((box_gradient != 0).any(axis=1), targets.positive)
    assert_array_equal((logit_gradient != 0).any(axis=1), targets.positive | hard)
    # Softmax cross-entropy and nothing else: the selection itself is not differentiated.
    expected = jax.nn.softmax(logits) - jax.nn.one_hot(targets.class_ids, CHANNELS)
    chosen = np.asarray(targets.positive | hard)
    assert_allclose(logit_gradient[chosen], expected[chosen], atol=1e-6)


@pytest.mark.parametrize("share_positive", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1e4, 1e30])
def test_loss_and_gradient_are_finite(share_positive, scale):
    rng = np.random.default_rng(4)
    targets = random_targets(rng, share_positive=share_positive)
    deltas, logits = random_predictions(rng, scale=scale)
    (loss, sums), gradients = loss_and_gradient((deltas * scale, logits), targets)
    assert np.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert (sums.box_loss == 0) == (share_positive == 0)


def test_half_precision_logits_give_a_float32_loss():
    rng = np.random.default_rng(5)
    (deltas, logits), targets = random_predictions(rng), random_targets(rng)
    logits = logits.astype(jnp.bfloat16)
    (_, half), _ = loss_and_gradient((deltas, logits), targets)
    (_, full), _ = loss_and_gradient((deltas, logits.astype(jnp.float32)), targets)
    assert half.class_loss.dtype == jnp.float32
    assert_allclose(half.class_loss, full.class_loss, rtol=1e-6)


def test_vmap_equals_one_by_one():
    rng = np.random.default_rng(6)
    examples = [(*random_predictions(rng), random_targets(rng)) for _ in range(3)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
    together = jax.jit(jax.vmap(multibox_loss, (0, 0, 0, None)))(*batch, square_anchors())
    for i, (*predictions, targets) in enumerate(examples):
        (_, alone), _ = loss_and_gradient(tuple(predictions), targets)
        assert_allclose([x[i] for x in together], alone, rtol=1e-6)


def test_matching_and_loss_trace_inside_shard_map(mesh_of_eight):
    anchors = jnp.zeros((ANCHORS, 4))

    def image_loss(box_deltas, class_logits, boxes, labels, valid):
        targets = match(anchors, boxes, labels, valid)
        return multibox_loss(box_deltas, class_logits, targets, anchors)

    rows = jax.P("data")
    batched = jax.shard_map(jax.vmap(image_loss), mesh=mesh_of_eight, in_specs=rows, out_specs=rows)
    batch = [
        jnp.zeros((8, *shape), dtype)
        for shape, dtype in [
            ((ANCHORS, 4), float),
            ((ANCHORS, CHANNELS), float),
            ((3, 4), float),
            ((3,), int),
            ((3,), bool),
        ]
    ]
    assert jax.eval_shape(batched, *batch).class_loss.shape == (8,)


def class_loss_of(logit, *, quality=1.0, wanted=True, **words):
    return float(
        sigmoid_loss(
            jnp.array([[logit]]), jnp.array([[wanted]]), jnp.array([quality]), **words
        )[0, 0]
    )  # fmt: skip


def test_sigmoid_losses_by_hand():
    log3, log4, log43 = np.log(3), np.log(4), np.log(4 / 3)  # a score of 3/4: logit log 3
    focal = functools.partial(class_loss_of, log3, kind="focal", alpha=0.2, gamma=2.0)
    assert focal() == pytest.approx(0.2 * (1 / 4) ** 2 * log43, rel=1e-5)
    assert focal(wanted=False) == pytest.approx(0.8 * (3 / 4) ** 2 * log4, rel=1e-5)
    quality = functools.partial(class_loss_of, log3, kind="quality_focal", gamma=2.0)
    half = (log43 + log4) / 2  # cross-entropy with a wanted 1/2
    assert quality(quality=0.5) == pytest.approx((1 / 4) ** 2 * half, rel=1e-5)
    assert quality(wanted=False) == pytest.approx((3 / 4) ** 2 * log4, rel=1e-5)
    vari = functools.partial(class_loss_of, log3, kind="varifocal", alpha=0.75, gamma=2.0)
    assert vari(quality=0.5) == pytest.approx(0.5 * half, rel=1e-5)
    assert vari(wanted=False) == pytest.approx(0.75 * (3 / 4) ** 2 * log4, rel=1e-5)


@pytest.mark.parametrize("kind", ["quality_focal", "varifocal"])
def test_a_quality_loss_is_least_where_the_score_is_the_quality(kind):
    gradient = jax.grad(
        lambda logit: sigmoid_loss(
            logit[None, None], jnp.array([[True]]), jnp.array([0.3]), kind=kind
        ).sum()
    )
    at = np.log(0.3 / 0.7)
    assert float(gradient(at)) == pytest.approx(0, abs=1e-6)
    assert float(gradient(at - 1)) < 0 < float(gradient(at + 1))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("logit", "quality"), [(-110.0, 0.0), (0.0, 0.5), (20.0, 1.0)])
def test_the_gradient_is_finite_where_the_score_is_the_quality_exactly(logit, quality, gamma):
    gradient = jax.grad(
        lambda logit: sigmoid_loss(
            logit[None, None],
            jnp.array([[quality > 0]]),
            jnp.array([quality]),
            kind="quality_focal",
            gamma=gamma,
        ).sum()
    )
    assert abs(float(gradient(logit))) < 1e-6


def square_anchors():
    corner = jnp.asarray(np.random.default_rng(8).uniform(0, 0.7, (ANCHORS, 2)), jnp.float32)
    return jnp.concatenate([corner, corner + 0.3], axis=1)


@pytest.mark.parametrize("class_loss", CLASS_LOSSES)
def test_every_class_loss_is_finite_and_ignores_the_ignored(class_loss):
    anchors = square_anchors()

    def total(predictions, targets):
        words = {"class_loss": class_loss, "box_loss": "ciou"}
        sums = multibox_loss(*predictions, targets, anchors, **words)
        return sums.class_loss + sums.box_loss

    value_and_gradient = jax.jit(jax.value_and_grad(total), compiler_options=QUICK)
    for scale in (1.0, 1e4):
        rng = np.random.default_rng(9)
        targets, (deltas, logits) = random_targets(rng), random_predictions(rng, scale=scale)
        loss, (box_gradient, logit_gradient) = value_and_gradient((scale * deltas, logits), targets)
        for each in (loss, box_gradient, logit_gradient):
            assert np.isfinite(each).all()
        assert not box_gradient[~np.asarray(targets.positive)].any()
        asked = np.asarray(targets.positive | targets.negative)
        assert logit_gradient[asked].any()
        assert not logit_gradient[~asked].any()
        assert class_loss == "softmax" or not logit_gradient[:, 0].any()


def test_the_box_loss_by_overlap_is_that_of_the_decoded_boxes():
    rng = np.random.default_rng(10)
    targets, (deltas, logits) = random_targets(rng, share_positive=0.4), random_predictions(rng)
    anchors = square_anchors()

    @functools.partial(jax.jit, static_argnames="kind")
    def both(kind):
        boxes, wanted = decode(deltas, anchors), decode(targets.box_deltas, anchors)
        losses = overlap_loss(boxes, wanted, kind=kind)
        return multibox_loss(deltas, logits, targets, anchors, box_loss=kind).box_loss, losses

    for kind in BOX_LOSSES:
        box_loss, losses = both(kind)
        assert_allclose(box_loss, losses[np.asarray(targets.positive)].sum(), rtol=1e-5)
    with pytest.raises(UserError, match="box_loss: got 'iou', expected one of smooth_l1, giou"):
        multibox_loss(deltas, logits, targets, anchors, box_loss="iou")
    with pytest.raises(UserError, match="class_loss: got 'hinge', expected one of softmax, focal"):
        multibox_loss(deltas, logits, targets, anchors, class_loss="hinge")


@pytest.mark.parametrize("kind", CLASS_LOSSES[1:])
def test_the_class_loss_by_sigmoid_is_that_of_the_foreground_and_the_boxes_found(kind):
    rng = np.random.default_rng(12)
    targets, (deltas, logits) = random_targets(rng, share_positive=0.4), random_predictions(rng)
    deltas, anchors = 0.1 * deltas, square_anchors()

    @jax.jit
    def both(deltas):
        words = {"class_loss": kind, "focal_alpha": 0.4, "focal_gamma": 1.5}
        found = multibox_loss(deltas, logits, targets, anchors, **words).class_loss
        quality = iou(decode(deltas, anchors), decode(targets.box_deltas, anchors))
        wanted = jax.nn.one_hot(targets.class_ids, CHANNELS)[:, 1:] > 0
        losses = sigmoid_loss(logits[:, 1:], wanted, quality, kind=kind, alpha=0.4, gamma=1.5)
        return found, losses.sum(axis=1)

    (found, losses), (gradient, _) = jax.jvp(both, (deltas,), (jnp.ones_like(deltas),))
    assert_allclose(found, losses[targets.positive | targets.negative].sum(), rtol=1e-5)
    assert gradient == 0  # the quality is a target, which no box learns from


def test_a_varifocal_weight_is_not_learned_through():
    # Of what is not wanted the loss is -log(1 - p), whose derivative by the logit is p = 3/4.
    slope = jax.grad(
        lambda logit: sigmoid_loss(
            logit[None, None], jnp.array([[False]]), jnp.array([1.0]), kind="varifocal"
        ).sum()
    )(jnp.log(3.0))
    assert float(slope) == pytest.approx(0.25 * (3 / 4) ** 2 * 3 / 4, rel=1e-5)


def test_the_keywords_of_mining_reach_it():
    targets = random_targets(np.random.default_rng(13), share_positive=0.0)
    predictions = random_predictions(np.random.default_rng(13))
    for minimum in (0, 5):
        sums = multibox_loss(*predictions, targets, square_anchors(), minimum_negatives=minimum)
        assert sums.num_classified == minimum


def test_label_smoothing_is_cross_entropy_with_smooth_labels():
    rng = np.random.default_rng(11)
    targets, predictions = random_targets(rng), random_predictions(rng)
    smooth = jax.jit(
        functools.partial(multibox_loss, label_smoothing=0.1, negatives_per_positive=0)
    )(*predictions, targets, square_anchors())
    wanted = 0.9 * jax.nn.one_hot(targets.class_ids, CHANNELS) + 0.1 / CHANNELS
    expected = -(wanted * jax.nn.log_softmax(predictions[1])).sum(axis=1)
    chosen = np.asarray(targets.positive | targets.negative)
    assert_allclose(smooth.class_loss, expected[chosen].sum(), rtol=1e-5)


@pytest.mark.parametrize("variances", [(0.1, 0.1, 0.2, 0.2), (1.0, 1.0, 0.5, 0.5)])
def test_boxes_are_decoded_as_their_targets_were_encoded(variances):
    anchors = np.array([[0.1, 0.1, 0.5, 0.5]], np.float32)
    box = np.array([[0.2, 0.15, 0.5, 0.6]], np.float32)
    targets = match(anchors, box, np.array([0]), np.array([True]), variances=variances)
    words = {"box_loss": "giou", "variances": variances}
    untouched = multibox_loss(jnp.zeros((1, 4)), jnp.zeros((1, 2)), targets, anchors, **words)
    exact = multibox_loss(targets.box_deltas, jnp.zeros((1, 2)), targets, anchors, **words)
    assert_allclose(
        untouched.box_loss, overlap_loss(jnp.asarray(anchors), box, kind="giou")[0], rtol=1e-5
    )
    assert_allclose(exact.box_loss, 0, atol=1e-5)
