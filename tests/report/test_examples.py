"""Which images a report shows."""

import numpy as np

from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes
from ssd_jax.report.examples import ShownImage, choose_examples

BOX, ELSEWHERE = [1.0, 1, 20, 20], [50.0, 50, 70, 70]


def truth(*labels):
    boxes = np.array([[1.0 + 30 * i, 1, 20 + 30 * i, 20] for i in range(len(labels))])
    return GroundTruth(boxes.reshape(-1, 4), np.array(labels, int), np.zeros(len(labels), bool))


def found(*rows):
    boxes = np.array([box for box, _, _ in rows]).reshape(-1, 4)
    return ScoredBoxes(
        boxes, np.array([s for _, _, s in rows]), np.array([label for _, label, _ in rows], int)
    )


def test_the_best_the_worst_and_the_most_confused():
    truths = [truth(0), truth(0), truth(0, 1), truth(1)]
    detections = [
        found((BOX, 0, 0.9)),
        found((BOX, 1, 0.8)),  # of another class
        found((ELSEWHERE, 0, 0.7)),  # two objects missed and one that is not there
        found((BOX, 1, 0.4)),  # scores too little to be shown
    ]
    examples = choose_examples(truths, detections, num_classes=2)
    assert examples["best"] == [ShownImage(0, correct=1, wrong=0, confused=0, missed=0)]
    assert [example.image for example in examples["worst"]] == [2, 1, 3]
    assert [example.image for example in examples["most_confused"]] == [1]


def test_where_no_image_is_without_mistakes_the_best_have_the_fewest():
    truths = [truth(0, 0, 0), truth(0, 0, 1), truth(0, 1)]
    boxes = truths[0].boxes.tolist()
    detections = [
        found((boxes[0], 0, 0.9), (boxes[1], 0, 0.9), (boxes[2], 0, 0.9), (ELSEWHERE, 0, 0.9)),
        found((boxes[0], 0, 0.9), (boxes[1], 0, 0.9)),
        found((boxes[0], 0, 0.9)),  # as much wrong as right
    ]
    examples = choose_examples(truths, detections, num_classes=2)
    assert [(e.image, e.correct, e.wrong + e.missed) for e in examples["best"]] == [
        (0, 3, 1),
        (1, 2, 1),
    ]


def test_of_a_perfect_detector_there_is_no_worst_image():
    examples = choose_examples([truth(0)], [found((BOX, 0, 0.9))], num_classes=1)
    assert (examples["worst"], examples["most_confused"]) == ([], [])


def test_images_of_equal_merit_come_in_their_own_order():
    examples = choose_examples([truth(0)] * 3, [found((BOX, 0, 0.9))] * 3, num_classes=1, count=2)
    assert [example.image for example in examples["best"]] == [0, 1]
