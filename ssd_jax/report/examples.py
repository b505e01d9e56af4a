"""The images of an evaluation that are worth looking at."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssd_jax.evaluation.errors import CONFUSION, CORRECT, judge
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes

# Detections with lower scores would not be shown to a person.
SHOWN_SCORE = 0.5
SHOWN = 4


class ShownImage(NamedTuple):
    """The right and wrong detections of one image with scores of at least `SHOWN_SCORE`."""

    image: int
    correct: int
    wrong: int
    confused: int
    missed: int


def choose_examples(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    count: int = SHOWN,
) -> dict[str, list[ShownImage]]:
    """The best, the worst and the most confused images, by kind; a kind may have none.

    The best have the fewest mistakes (wrong detections and missed objects) and, with equally few,
    the most objects found. The worst have the most mistakes. The most confused have the most
    objects taken for another class.
    """
    shown = [
        ScoredBoxes(*(column[record.scores >= SHOWN_SCORE] for column in record))
        for record in detections
    ]
    judged = judge(ground_truths, shown, num_classes=num_classes, iou_threshold=iou_threshold)
    image_of_detection = np.repeat(np.arange(len(shown)), [len(r.scores) for r in shown])
    image_of_object = np.repeat(
        np.arange(len(ground_truths)), [len(record.labels) for record in ground_truths]
    )

    def per_image(rows, image_of):
        return np.bincount(image_of[rows], minlength=len(ground_truths)).tolist()

    columns = zip(
        range(len(ground_truths)),
        per_image(judged.verdict == CORRECT, image_of_detection),
        per_image(judged.verdict > CORRECT, image_of_detection),
        per_image(judged.verdict == CONFUSION, image_of_detection),
        per_image(judged.missed, image_of_object),
        strict=True,
    )
    examples = [ShownImage(*column) for column in columns]

    def first(among, key):
        return sorted(among, key=key, reverse=True)[:count]

    def mistakes(example):
        return example.wrong + example.missed

    return {
        "best": first(
            [e for e in examples if e.correct > mistakes(e)], lambda e: (-mistakes(e), e.correct)
        ),
        "worst": first([e for e in examples if mistakes(e)], mistakes),
        "most_confused": first([e for e in examples if e.confused], lambda e: e.confused),
    }
