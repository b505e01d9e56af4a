import inspect
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scenes import found, random_problem, truth

from ssd_jax.errors import UserError
from ssd_jax.evaluation import voc
from ssd_jax.evaluation.voc import (
    ScoredBoxes,
    evaluate_voc,
    match_detections,
    nearest_objects,
)


def only_class(ground_truths, detections, **options):
    return evaluate_voc(ground_truths, detections, num_classes=1, **options).per_class[0]


BOX = [10, 10, 29, 29]
FAR = [60, 60, 79, 79]


# ---- literals, worked by hand ----


def test_one_hit_one_miss_one_false_alarm():
    # By score: hit (precision 1, recall 1/2), false alarm. Recall 1 is never reached.
    result = only_class([truth(BOX, FAR)], [found(BOX, [0, 0, 5, 5], scores=[0.9, 0.8])])
    assert (result.npos, result.tp, result.fp) == (2, 1, 1)
    assert result.ap == pytest.approx(1 / 2)
    assert result.ap11 == pytest.approx(6 / 11)  # recalls 0, .1, .. .5
    assert result.recall.tolist() == [0.5, 0.5]
    assert result.precision.tolist() == [1.0, 0.5]
    assert result.scores.tolist() == [0.9, 0.8]


def test_precision_is_the_best_at_this_recall_or_beyond():
    # miss, hit, hit: precision 0, 1/2, 2/3 at recall 0, 1/2, 1 -> 2/3 everywhere.
    detections = found([0, 0, 5, 5], BOX, FAR, scores=[0.9, 0.8, 0.7])
    result = only_class([truth(BOX, FAR)], [detections])
    assert result.ap == pytest.approx(2 / 3)
    assert result.ap11 == pytest.approx(2 / 3)


def test_recall_of_three_in_ten_does_not_reach_the_fourth_threshold():
    boxes = [[20 * i, 0, 20 * i + 9, 9] for i in range(10)]
    result = only_class([truth(*boxes)], [found(*boxes[:3], scores=[0.9, 0.8, 0.7])])
    assert result.ap == pytest.approx(0.3)
    assert result.ap11 == pytest.approx(3 / 11)


def test_second_detection_of_an_object_is_a_false_positive():
    # hit, duplicate, hit: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    result = only_class([truth(BOX, FAR)], [found(BOX, BOX, FAR, scores=[0.9, 0.8, 0.7])])
    assert (result.tp, result.fp) == (2, 1)
    assert result.ap == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)


def test_equal_scores_keep_their_order():
    near_miss = [10, 10, 29, 24]  # 300 of 400 pixels
    for first, second, expected in ((BOX, FAR, 1.0), (FAR, BOX, 0.5)):
        result = only_class([truth(near_miss)], [found(first, second, scores=[0.5, 0.5])])
        assert result.ap == pytest.approx(expected)


def test_a_detection_looks_only_at_its_best_object():
    beside = [12, 10, 31, 29]
    # Both detections are nearest to BOX; the second does not fall back on `beside`.
    result = only_class([truth(BOX, beside)], [found(BOX, [10, 10, 28, 29], scores=[0.9, 0.8])])
    assert (result.tp, result.fp) == (1, 1)


def test_first_of_equally_near_objects_is_taken():
    matches = match_detections([truth(BOX, BOX)], [found(BOX, scores=[0.9])], num_classes=1)
    assert matches.outcome.tolist() == [voc.TRUE_POSITIVE]
    assert matches.truth.tolist() == [0]


def test_difficult_object_counts_neither_way():
    result = only_class(
        [truth(FAR, BOX, difficult=[True, False])],
        [found(FAR, FAR, BOX, scores=[0.9, 0.8, 0.7])],
    )
    assert (result.npos, result.tp, result.fp) == (1, 1, 0)
    assert result.ap == result.ap11 == 1.0
    assert result.scores.tolist() == [0.7]


def test_classes_are_apart_and_the_mean_leaves_out_undefined_ones():
    result = evaluate_voc(
        [truth(BOX, FAR, FAR, labels=[0, 1, 3], difficult=[False, False, True])],
        [found(BOX, BOX, FAR, scores=[0.9, 0.8, 0.7], labels=[0, 1, 2])],
        num_classes=4,
    )
    assert [each.ap for each in result.per_class] == [1.0, 0.0, None, None]
    assert [each.ap11 for each in result.per_class] == [1.0, 0.0, None, None]
    assert [each.npos for each in result.per_class] == [1, 1, 0, 0]
    assert [each.fp for each in result.per_class] == [0, 1, 1, 0]
    assert result.map == result.map11 == 0.5


def test_images_are_apart():
    result = only_class([truth(BOX), truth()], [found(), found(BOX, scores=[0.9])])
    assert (result.tp, result.fp, result.ap) == (0, 1, 0.0)


def test_no_object_anywhere_has_no_mean():
    result = evaluate_voc([truth()], [found(BOX, scores=[0.9])], num_classes=2)
    assert result.map is None
    assert result.map11 is None


@pytest.mark.parametrize(("rule", "ap"), [(">=", 1.0), (">", 0.0)])
def test_iou_of_exactly_one_half(rule, ap):
    half = [10, 10, 29, 19]
    assert only_class([truth(BOX)], [found(half, scores=[0.9])], iou_rule=rule).ap == ap


@pytest.mark.parametrize(("plus_one", "ap"), [(True, 1.0), (False, 0.0)])
def test_a_box_of_one_pixel_exists_only_with_plus_one(plus_one, ap):
    pixel = [7, 7, 7, 7]
    assert only_class([truth(pixel)], [found(pixel, scores=[0.9])], plus_one=plus_one).ap == ap


def test_matches_name_the_object_in_the_concatenated_ground_truth():
    matches = match_detections(
        [truth(BOX), truth(FAR, BOX, difficult=[True, False])],
        [found(FAR, scores=[0.9]), found(BOX, FAR, BOX, scores=[0.3, 0.9, 0.4])],
        num_classes=1,
    )
    hit, miss, ignored = voc.TRUE_POSITIVE, voc.FALSE_POSITIVE, voc.IGNORED
    assert matches.outcome.tolist() == [miss, miss, ignored, hit]
    assert matches.truth.tolist() == [-1, -1, -1, 2]


def test_a_detection_that_touches_no_object_has_none():
    nearest, iou = nearest_objects([truth(BOX)], [found(FAR, scores=[0.9])], num_classes=1)
    assert (nearest.tolist(), iou.tolist()) == ([-1], [0.0])


def test_the_result_names_its_protocol():
    options = {"num_classes": 1, "iou_threshold": 0.75, "iou_rule": ">", "plus_one": False}
    images = [truth(BOX)] * 3, [found(BOX, scores=[1])] * 3
    assert evaluate_voc(*images, num_classes=1).protocol.describe("11-point") == (
        "VOC07 11-point, IoU >= 0.5, difficult ignored, +1 pixels, 3 images"
    )
    protocol = evaluate_voc(*images, **options).protocol
    assert json.loads(json.dumps(protocol.to_dict())) == {
        "iou_threshold": 0.75,
        "iou_rule": ">",
        "plus_one": False,
        "difficult": "ignored",
        "counting": "devkit",
        "images": 3,
        "map11": "VOC07 11-point, IoU > 0.75, difficult ignored, continuous boxes, 3 images",
        "map": "VOC12 area, IoU > 0.75, difficult ignored, continuous boxes, 3 images",
    }


# ---- other protocols ----


def test_difficult_objects_can_be_counted_like_all_others():
    images = [truth(FAR, BOX, difficult=[True, False])], [found(FAR, BOX, scores=[0.9, 0.8])]
    assert (only_class(*images).npos, only_class(*images).tp) == (1, 1)
    counted = only_class(*images, difficult="counted")
    assert (counted.npos, counted.tp) == (2, 2)


HARD = truth(FAR, difficult=[True])
HARD_AND_EASY = truth(FAR, BOX, difficult=[True, False])


@pytest.mark.parametrize(
    ("objects", "boxes", "devkit", "mxnet_ssd"),
    [
        (HARD_AND_EASY, [BOX], 1, 1),
        (HARD_AND_EASY, [[0, 0, 5, 5]], 1, 1),
        (HARD_AND_EASY, [FAR], 1, 0),  # all that is detected is ignored: the easy one is lost
        (HARD_AND_EASY, [], 1, 2),  # nothing is detected: the difficult one is asked for
        (HARD, [], 0, 1),
    ],
)
def test_mxnet_ssd_counts_objects_by_what_was_detected_beside_them(
    objects, boxes, devkit, mxnet_ssd
):
    images = [objects], [found(*boxes, scores=[0.9] * len(boxes))]
    assert only_class(*images).npos == devkit
    assert only_class(*images, counting="mxnet-ssd").npos == mxnet_ssd


def test_mxnet_ssd_gives_a_detected_class_without_objects_an_average_of_zero():
    images = [truth(BOX)], [found(BOX, FAR, scores=[0.9, 0.8], labels=[0, 1])]
    for counting, expected in (("devkit", [1.0, None, None]), ("mxnet-ssd", [1.0, 0.0, None])):
        per_class = evaluate_voc(*images, num_classes=3, counting=counting).per_class
        assert [each.ap11 for each in per_class] == expected
        assert [each.ap for each in per_class] == expected


def test_the_protocol_of_mxnet_ssd_has_its_name():
    images = [truth(BOX)], [found(BOX, scores=[1])]
    options = {"num_classes": 1, "iou_rule": ">", "counting": "mxnet-ssd"}
    assert evaluate_voc(*images, **options).protocol.describe("11-point") == (
        "mxnet-ssd 11-point, IoU > 0.5, difficult ignored, +1 pixels, 1 images"
    )


# ---- mistakes ----


@pytest.mark.parametrize(
    ("truths", "detections", "message"),
    [
        ([], [], "0 images"),
        ([truth(BOX)], [], "1 images and detections for 0"),
        ([truth(BOX, labels=[2])], [found()], "ground truth: got labels from 2 to 2; .* 0 to 1"),
        ([truth(BOX)], [found(BOX, scores=[1], labels=[-1])], "detections: got labels from -1"),
        ([truth()], [found(BOX, BOX, scores=[1])], "detections of image 0.*'scores': 1"),
        ([truth()], [found(BOX, scores=[np.nan])], "NaN among the scores"),
    ],
)
def test_mistakes_are_told(truths, detections, message):
    with pytest.raises(UserError, match=message):
        evaluate_voc(truths, detections, num_classes=2)


def test_a_threshold_of_zero_is_refused():
    with pytest.raises(UserError, match=r"threshold of 0\.0; expected 0 < threshold <= 1"):
        evaluate_voc([truth(BOX)], [found()], num_classes=1, iou_threshold=0.0)


# ---- laws, and a slow reference ----


def averages(truths, detections, **options):
    result = evaluate_voc(truths, detections, num_classes=3, **options)
    return [(each.ap11, each.ap, each.npos, each.tp, each.fp) for each in result.per_class]


def reference(truths, detections, *, iou_threshold, plus_one, iou_rule):
    """The devkit's loop, one detection after the other."""
    one = 1 if plus_one else 0
    rows = []
    for label in range(3):
        every = [
            (-float(score), image, row, box)
            for image, each in enumerate(detections)
            for row, (box, score, own) in enumerate(zip(*each, strict=True))
            if own == label
        ]
        npos = sum(int(np.sum((t.labels == label) & ~t.difficult)) for t in truths)
        taken, tp, fp, curve = set(), 0, 0, []
        for _, image, _, box in sorted(every, key=lambda entry: entry[:3]):
            best, best_iou = None, 0.0
            for index, other in enumerate(truths[image].boxes):
                if truths[image].labels[index] != label:
                    continue
                width = min(box[2], other[2]) - max(box[0], other[0]) + one
                height = min(box[3], other[3]) - max(box[1], other[1]) + one
                if width <= 0 or height <= 0:
                    continue
                areas = [(b[2] - b[0] + one) * (b[3] - b[1] + one) for b in (box, other)]
                iou = width * height / (sum(areas) - width * height)
                if iou > best_iou:
                    best, best_iou = index, iou
            enough = best_iou >= iou_threshold if iou_rule == ">=" else best_iou > iou_threshold
            if enough and truths[image].difficult[best]:
                continue
            if enough and (image, best) not in taken:
                taken.add((image, best))
                tp += 1
            else:
                fp += 1
            curve.append((tp / npos if npos else 0, tp / (tp + fp)))
        if not npos:
            rows.append((None, None, 0, tp, fp))
            continue
        ap11 = sum(max([p for r, p in curve if r >= i * 0.1], default=0) for i in range(11)) / 11
        ap, last = 0.0, 0.0
        for place, (recall, _) in enumerate(curve):
            ap += (recall - last) * max(p for _, p in curve[place:])
            last = recall
        rows.append((ap11, ap, npos, tp, fp))
    return rows


@pytest.mark.parametrize("iou_rule", [">=", ">"])
@pytest.mark.parametrize("plus_one", [True, False])
@pytest.mark.parametrize("ties", [True, False])
def test_agrees_with_a_plain_loop(iou_rule, plus_one, ties):
    for seed in range(10):
        problem = random_problem(seed, ties=ties)
        options = {"iou_threshold": 0.5, "plus_one": plus_one, "iou_rule": iou_rule}
        for ours, theirs in zip(
            averages(*problem, **options), reference(*problem, **options), strict=True
        ):
            assert ours == pytest.approx(theirs, abs=1e-12)


seeds = hypothesis.given(seed=st.integers(0, 2**32 - 1))
few = hypothesis.settings(max_examples=15, deadline=None)


@seeds
@few
def test_ground_truth_as_detections_is_perfect(seed):
    # One object a class and image: otherwise two equal boxes would share their best object.
    rng = np.random.default_rng(seed)
    truths = [
        truth(
            *rng.integers(0, 9, (3, 4)).cumsum(1), labels=[0, 1, 2], difficult=[False, hard, True]
        )
        for hard in rng.random(5) < 0.5
    ]
    answers = [ScoredBoxes(t.boxes, rng.random(3), t.labels) for t in truths]
    result = evaluate_voc(truths, answers, num_classes=3)
    assert result.map == pytest.approx(1.0)
    assert result.map11 == pytest.approx(1.0)
    assert sum(each.fp for each in result.per_class) == 0


@seeds
@few
def test_order_of_images_and_detections_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    truths, detections = random_problem(seed)
    order = rng.permutation(len(truths))
    shuffles = [rng.permutation(len(each.scores)) for each in detections]
    shuffled = [
        ScoredBoxes(*(column[rows] for column in each))
        for each, rows in zip(detections, shuffles, strict=True)
    ]
    moved = averages([truths[i] for i in order], [shuffled[i] for i in order])
    for ours, theirs in zip(moved, averages(truths, detections), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)


@seeds
@few
def test_a_duplicate_never_raises_an_average(seed):
    truths, detections = random_problem(seed)
    doubled = [
        ScoredBoxes(*(np.concatenate([column, column[:1]]) for column in each))
        for each in detections
    ]
    for before, after in zip(averages(truths, detections), averages(truths, doubled), strict=True):
        for old, new in zip(before[:2], after[:2], strict=True):
            assert new is None if old is None else new <= old + 1e-12


def test_normalised_boxes_are_not_taken_for_pixels():
    near, far = truth([0.1, 0.1, 0.3, 0.3]), found([0.3, 0.3, 0.5, 0.5], scores=[0.9])
    with pytest.raises(UserError, match=r"end at 0\.3, expected pixels.*devkit_pixels"):
        only_class([near], [far])
    assert only_class([near], [far], plus_one=False).ap == 0
    assert only_class([truth([1, 1, 1, 1])], [found([1, 1, 1, 1], scores=[0.9])]).ap == 1


def test_flags_of_numbers_are_flags():
    scene = truth(BOX, FAR, difficult=[False, True])
    hits = [found(BOX, FAR, scores=[0.9, 0.8])]
    numbers = scene._replace(difficult=scene.difficult.astype(int))
    for record in (scene, numbers):
        assert (only_class([record], hits).npos, only_class([record], hits).ap) == (1, 1.0)


@pytest.mark.parametrize(
    "choice", [{"difficult": "count"}, {"counting": "mxnet"}, {"iou_rule": "=>"}]
)
def test_a_rule_that_does_not_exist_is_refused(choice):
    unchecked = inspect.unwrap(evaluate_voc)  # by the type checker of the tests
    with pytest.raises(UserError, match=f"{next(iter(choice))}: got .*, expected one of"):
        unchecked([truth(BOX)], [found(BOX, scores=[0.9])], num_classes=1, **choice)
