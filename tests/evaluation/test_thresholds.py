"""The score with the best F1."""

import numpy as np
import pytest
from scenes import found, truth

from ssd_jax.evaluation.metrics import diagnose, measure_detections, results_dict, table
from ssd_jax.evaluation.thresholds import best_common_threshold, best_threshold, shown_score
from ssd_jax.evaluation.voc import evaluate_voc

BOXES = [[1.0, 1, 20, 20], [31, 1, 50, 20], [61, 1, 80, 20]]
ELSEWHERE = [1.0, 61, 20, 80]


def results(truths, detections, num_classes=1):
    return evaluate_voc(truths, detections, num_classes=num_classes).per_class


def test_the_best_f1_is_where_one_more_detection_does_not_pay():
    boxes = [BOXES[0], BOXES[1], ELSEWHERE, ELSEWHERE, BOXES[2]]
    (result,) = results([truth(*BOXES)], [found(*boxes, scores=[0.9, 0.8, 0.7, 0.6, 0.5])])
    # F1: 1/2, 4/5, 2/3, 4/7, 3/4.
    best = best_threshold(result)
    assert (best.score, best.precision) == (0.8, 1.0)
    assert (best.recall, best.f1) == (pytest.approx(2 / 3), pytest.approx(4 / 5))


def test_detections_of_one_score_are_shown_together():
    boxes = [BOXES[0], ELSEWHERE, ELSEWHERE]
    (result,) = results([truth(*BOXES[:2])], [found(*boxes, scores=[0.5, 0.5, 0.5])])
    assert best_threshold(result).precision == pytest.approx(1 / 3)


def test_a_difficult_object_counts_neither_way():
    truths = [truth(*BOXES[:2], difficult=[False, True])]
    (result,) = results(truths, [found(*BOXES[:2], scores=[0.5, 0.9])])
    assert best_threshold(result) == (0.5, 1.0, 1.0, 1.0)


def test_without_objects_or_hits_there_is_none():
    assert best_threshold(results([truth()], [found(BOXES[0], scores=[0.9])])[0]) is None
    assert best_threshold(results([truth(BOXES[0])], [found()])[0]) is None
    assert best_common_threshold(results([truth()], [found()], num_classes=2)) is None


def test_one_threshold_for_all_classes_counts_them_together():
    truths = [truth(BOXES[0], BOXES[1], labels=[0, 1])]
    detections = [found(*BOXES, scores=[0.9, 0.3, 0.6], labels=[0, 1, 2])]
    # The third class has no object: what is found of it is wrong.
    best = best_common_threshold(results(truths, detections, num_classes=3))
    assert (best.score, best.f1) == (pytest.approx(0.3), pytest.approx(4 / 5))


def test_the_table_and_the_json_have_them():
    evaluation = measure_detections(
        [truth(*BOXES[:2], labels=[0, 1])],
        [found(BOXES[0], scores=[0.75])],
        np.array([[100, 100]]),
        num_classes=2,
    )
    told = results_dict(evaluation, diagnose(evaluation), ("cat", "dog"))["thresholds"]
    perfect = {"score": 0.75, "f1": 1.0, "precision": 1.0, "recall": 1.0}
    assert told["per_class"] == {"cat": perfect, "dog": None}
    assert told["all"] == pytest.approx({**perfect, "recall": 0.5, "f1": 2 / 3})
    lines = table(evaluation, diagnose(evaluation), ("cat", "dog")).splitlines()
    assert lines[0].split()[5:] == ["best", "F1", "at", "score", "precision", "recall"]
    assert lines[1].split()[5:] == ["1.000", "0.750", "1.000", "1.000"]
    assert lines[2].split()[5:] == ["-"] * 4
    assert len(lines[1]) <= len(lines[0]) <= 80
    assert "one score threshold for all classes: 0.750, with an F1 of 0.667" in "\n".join(lines)


@pytest.mark.parametrize(("score", "shown"), [(0.4379, 0.437), (0.9999, 0.999), (0.25, 0.25)])
def test_a_score_is_shown_so_that_its_own_detection_is_taken(score, shown):
    assert shown_score(score) == shown
    assert shown_score(None) is None
