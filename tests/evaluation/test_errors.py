import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scenes import found, random_problem, truth

from ssd_jax.evaluation.errors import KINDS, VERDICTS, error_breakdown, judge
from ssd_jax.evaluation.voc import TRUE_POSITIVE, ScoredBoxes, evaluate_voc, match_detections

BOX, FAR = [10, 10, 29, 29], [60, 60, 79, 79]
# 200, 140 and 40 of BOX's 400 pixels.
HALF, THIRD, TENTH = [10, 10, 29, 19], [10, 10, 29, 16], [10, 10, 29, 11]
NOWHERE = [100, 100, 119, 119]


def verdicts(truths, detections, num_classes=2):
    judged = judge(truths, detections, num_classes=num_classes)
    return [VERDICTS[verdict] for verdict in judged.verdict], judged


@pytest.mark.parametrize(
    ("box", "label", "verdict"),
    [
        (BOX, 0, "correct"),
        (HALF, 0, "correct"),
        (THIRD, 0, "localisation"),
        (TENTH, 0, "localisation"),
        (BOX, 1, "confusion"),
        (TENTH, 1, "confusion"),
        (NOWHERE, 0, "background"),
        (FAR, 0, "ignored"),  # on a difficult object
    ],
)
def test_each_kind(box, label, verdict):
    objects = truth(BOX, FAR, difficult=[False, True])
    names, judged = verdicts([objects], [found(box, scores=[0.9], labels=[label])])
    assert names == [verdict]
    assert judged.truth.tolist() == [{"background": -1, "ignored": 1}.get(verdict, 0)]


def test_the_second_detection_of_an_object_is_a_duplicate():
    names, _ = verdicts([truth(BOX)], [found(BOX, BOX, scores=[0.8, 0.9])])
    assert names == ["duplicate", "correct"]


def test_the_own_class_comes_before_the_others():
    objects = truth(THIRD, BOX, labels=[0, 1])
    names, judged = verdicts([objects], [found(BOX, scores=[0.9], labels=[0])])
    assert names == ["localisation"]
    assert judged.truth.tolist() == [0]
    assert judged.on_object.tolist() == [False]


def test_a_low_threshold_does_not_change_which_object_was_found():
    near_another = [10, 28, 29, 47]  # with an IoU of 0.05 on BOX, and 0.8 on the other object
    objects = truth(BOX, [10, 30, 29, 49], labels=[0, 1])
    detection = found(near_another, scores=[0.9], labels=[0])
    judged = judge([objects], [detection], num_classes=2, iou_threshold=0.05)
    assert VERDICTS[judged.verdict[0]] == "correct"
    assert (judged.truth.tolist(), judged.missed.tolist()) == ([0], [False, True])


@pytest.mark.parametrize(
    ("box", "label", "missed"),
    [(BOX, 0, False), (THIRD, 0, False), (HALF, 1, False), (THIRD, 1, True), (NOWHERE, 0, True)],
)
def test_missed_is_what_no_mended_detection_would_find(box, label, missed):
    _, judged = verdicts([truth(BOX)], [found(box, scores=[0.9], labels=[label])])
    assert judged.missed.tolist() == [missed]


def test_difficult_objects_are_not_missed():
    _, judged = verdicts([truth(BOX, difficult=[True])], [found()])
    assert judged.missed.tolist() == [False]


def test_counted_are_as_many_of_the_best_as_there_are_objects():
    objects = truth(BOX, FAR, FAR, labels=[0, 0, 1])
    detections = found(BOX, THIRD, NOWHERE, FAR, scores=[0.9, 0.8, 0.7, 0.6], labels=[0, 0, 0, 0])
    breakdown = error_breakdown([objects], [detections], num_classes=2)
    none = dict.fromkeys((*VERDICTS[1:], "missed"), 0)
    first = none | {"objects": 2, "correct": 1, "localisation": 1}
    assert breakdown.counts == (first, none | {"objects": 1, "missed": 1})
    assert breakdown.total["objects"] == 3


def test_confusions_name_the_other_class():
    objects = truth(BOX, FAR, NOWHERE, labels=[0, 0, 1])
    detections = found(NOWHERE, BOX, scores=[0.9, 0.8], labels=[0, 0])
    written = error_breakdown([objects], [detections], num_classes=2).to_dict(["cat", "dog"])
    assert written["per_class"]["cat"]["confused_with"] == {"dog": 1}
    assert written["per_class"]["dog"]["confused_with"] == {}
    assert written["iou_threshold"] == 0.5
    assert written["background_iou"] == 0.1


@pytest.mark.parametrize(
    ("kind", "detections"),
    [
        ("localisation", found(THIRD, FAR, scores=[0.9, 0.8])),
        ("confusion", found(BOX, FAR, scores=[0.9, 0.8], labels=[1, 0])),
        ("missed", found(FAR, scores=[0.9])),
        ("background", found(NOWHERE, BOX, FAR, scores=[0.9, 0.8, 0.7])),
        ("duplicate", found(FAR, FAR, BOX, scores=[0.9, 0.8, 0.7])),
    ],
)
def test_the_gain_of_the_only_kind_is_all_that_lacks(kind, detections):
    truths = [truth(BOX, FAR)]
    gains = error_breakdown(truths, [detections], num_classes=2).gains
    lacking = 1 - evaluate_voc(truths, [detections], num_classes=2).map
    assert gains[kind] == pytest.approx(lacking)
    assert lacking > 0.1
    # A duplicate makes the localisation worse for nobody, and so on.
    others = {name: gain for name, gain in gains.items() if name != kind}
    assert max(others.values()) < lacking


@pytest.mark.parametrize(
    ("kind", "detection", "difficult"),
    [
        # With the right class it would still be a localisation.
        ("confusion", found(THIRD, scores=[0.9], labels=[1]), False),
        # With the right box it would be ignored.
        ("localisation", found(THIRD, scores=[0.9]), True),
    ],
)
def test_a_detection_that_mending_does_not_make_correct_gains_nothing(kind, detection, difficult):
    objects = truth(BOX, FAR, difficult=[difficult, False])
    breakdown = error_breakdown([objects], [detection], num_classes=2)
    assert breakdown.gains[kind] == 0


def test_the_threshold_of_a_breakdown_is_that_of_its_verdicts():
    objects, detections = [truth(BOX)], [found(HALF, scores=[0.9])]
    breakdown = error_breakdown(objects, detections, num_classes=1, iou_threshold=0.75)
    assert breakdown.total["localisation"] == 1


def test_without_objects_there_is_nothing_to_gain():
    breakdown = error_breakdown([truth()], [found(BOX, scores=[0.9])], num_classes=1)
    assert breakdown.gains == dict.fromkeys(KINDS)
    assert breakdown.total["background"] == 0


# ---- laws ----

seeds = hypothesis.given(seed=st.integers(0, 2**32 - 1))
few = hypothesis.settings(max_examples=15, deadline=None)


@seeds
@few
def test_correct_is_what_the_metric_counts_as_found(seed):
    truths, detections = random_problem(seed)
    names, judged = verdicts(truths, detections, num_classes=3)
    matches = match_detections(truths, detections, num_classes=3)
    assert [name == "correct" for name in names] == (matches.outcome == TRUE_POSITIVE).tolist()
    assert not np.isin(matches.truth[matches.truth >= 0], np.flatnonzero(judged.missed)).any()


@seeds
@few
def test_counts_add_up_and_no_mending_does_harm(seed):
    truths, detections = random_problem(seed)
    breakdown = error_breakdown(truths, detections, num_classes=3)
    for counts in breakdown.counts:
        assert sum(counts[verdict] for verdict in VERDICTS[1:]) <= counts["objects"]
        assert counts["missed"] <= counts["objects"]
    assert min((gain for gain in breakdown.gains.values() if gain is not None), default=0) > -1e-12


@seeds
@few
def test_ground_truth_as_detections_has_no_error(seed):
    truths, _ = random_problem(seed, classes=1)
    # One object an image: otherwise two equal boxes would share their best object.
    truths = [type(each)(*(column[:1] for column in each)) for each in truths]
    answers = [ScoredBoxes(t.boxes, np.ones(len(t.labels)), t.labels) for t in truths]
    breakdown = error_breakdown(truths, answers, num_classes=1)
    assert breakdown.total["correct"] == breakdown.total["objects"]
    assert set(breakdown.gains.values()) <= {None, 0.0}
