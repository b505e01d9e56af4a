"""The kinds of errors that a detector makes.

Kinds and thresholds are those of TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying
Object Detection Errors", section 2.2), with its two kinds of wrong class joined, as in Hoiem et al.
2012, "Diagnosing Error in Object Detectors", section 3.1. Every detection that is not correct gets
the first kind that fits:

* duplicate: on an object of its class (IoU of at least 0.5) that has a better detection.
* localisation: near an object of its class (IoU of at least 0.1, but below 0.5).
* confusion: on or near an object of another class (IoU of at least 0.1).
* background: none of these.

An object is missed if it was not found, has no localisation error, and has no confusion on it (IoU
of at least 0.5).

There are two measures. `counts` are, as in Hoiem et al., taken over the N best detections of a
class with N objects, because far down in the ranking nearly all detections are background. `gains`
are, as in TIDE, what the mean average precision would gain without a kind; gains do not add up.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ssd_jax.evaluation.voc import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    GroundTruth,
    ScoredBoxes,
    class_results,
    concatenate,
    nearest_objects,
    settle,
)

BACKGROUND_IOU = 0.1
# The verdicts on detections; a verdict is an index into this list.
VERDICTS = ("ignored", "correct", "localisation", "confusion", "duplicate", "background")
_IGNORED, CORRECT, LOCALISATION, CONFUSION, DUPLICATE, BACKGROUND = range(len(VERDICTS))
KINDS = (*VERDICTS[LOCALISATION:], "missed")


class Judged(NamedTuple):
    """The verdict on each detection, the object that it is about (-1: none), the missed objects.

    All are in the order of the concatenated images. `on_object` flags the detections whose IoU with
    that object reaches the threshold.
    """

    verdict: Int[np.ndarray, "D"]
    truth: Int[np.ndarray, "D"]
    on_object: Bool[np.ndarray, "D"]
    missed: Bool[np.ndarray, "N"]


class ErrorBreakdown(NamedTuple):
    """`counts[label]` by verdict, with "objects" and "missed"; `gains` by kind.

    `confusions[label][other]` counts, among the same detections, those of a class on another one.
    """

    iou_threshold: float
    counts: tuple[dict[str, int], ...]
    confusions: Int[np.ndarray, "C C"]
    gains: dict[str, float | None]

    @property
    def total(self) -> dict[str, int]:
        """The counts summed over all classes."""
        return {name: sum(of_class[name] for of_class in self.counts) for name in self.counts[0]}

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """The counts and gains for a JSON file."""
        per_class = {}
        for name, counts, others in zip(classes, self.counts, self.confusions, strict=True):
            confused = {classes[other]: int(others[other]) for other in np.flatnonzero(others)}
            per_class[name] = {**counts, "confused_with": confused}
        return {
            "iou_threshold": self.iou_threshold,
            "background_iou": BACKGROUND_IOU,
            "counted_among": "the best detections of each class, as many as it has objects",
            "total": self.total,
            "gains": self.gains,
            "per_class": per_class,
        }


def judge(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
) -> Judged:
    """Judge each detection; boxes are in the devkit's pixels and matched by its rules."""
    truths, found = concatenate(ground_truths), concatenate(detections)
    nearest, iou = nearest_objects(ground_truths, detections, num_classes=num_classes)
    outcome = settle(
        np.where(iou >= iou_threshold, nearest, -1), truths.difficult, found.scores
    ).outcome
    # If no object of the class is near, the nearest object is of another class.
    any_nearest, any_iou = nearest_objects(
        ground_truths, detections, num_classes=num_classes, any_class=True
    )
    near = iou >= min(BACKGROUND_IOU, iou_threshold)
    verdict = np.select(
        [
            outcome == IGNORED,
            outcome == TRUE_POSITIVE,
            iou >= iou_threshold,
            near,
            any_iou >= BACKGROUND_IOU,
        ],
        [_IGNORED, CORRECT, DUPLICATE, LOCALISATION, CONFUSION],
        BACKGROUND,
    )
    truth = np.where(near, nearest, any_nearest)
    truth[verdict == BACKGROUND] = -1
    on_object = np.where(near, iou, any_iou) >= iou_threshold
    explained = np.isin(verdict, (CORRECT, LOCALISATION)) | ((verdict == CONFUSION) & on_object)
    missed = ~truths.difficult & ~np.isin(np.arange(len(truths.labels)), truth[explained])
    return Judged(verdict, truth, on_object, missed)


def error_breakdown(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
) -> ErrorBreakdown:
    """The counts and gains of all kinds; the arguments are those of `judge`."""
    judged = judge(ground_truths, detections, num_classes=num_classes, iou_threshold=iou_threshold)
    truths, found = concatenate(ground_truths), concatenate(detections)
    objects = np.bincount(truths.labels[~truths.difficult], minlength=num_classes)
    missed = np.bincount(truths.labels[judged.missed], minlength=num_classes)
    counts, confusions = [], np.zeros((num_classes, num_classes), np.int64)
    for label in range(num_classes):
        rows = np.flatnonzero((found.labels == label) & (judged.verdict != _IGNORED))
        best = rows[np.argsort(-found.scores[rows], kind="stable")][: objects[label]]
        tally = np.bincount(judged.verdict[best], minlength=len(VERDICTS)).tolist()
        counts.append(
            {
                "objects": int(objects[label]),
                **dict(zip(VERDICTS[CORRECT:], tally[CORRECT:], strict=True)),
                "missed": int(missed[label]),
            }
        )
        confused = best[judged.verdict[best] == CONFUSION]
        confusions[label] = np.bincount(
            truths.labels[judged.truth[confused]], minlength=num_classes
        )
    return ErrorBreakdown(
        iou_threshold, tuple(counts), confusions, _gains(judged, truths, found, objects, missed)
    )


def _gains(judged, truths, found, objects, missed):
    """The mean average precision (area) without a kind of error, minus the one with all errors."""
    outcome = np.select(
        [judged.verdict == _IGNORED, judged.verdict == CORRECT],
        [IGNORED, TRUE_POSITIVE],
        FALSE_POSITIVE,
    )
    if not objects.any():
        return dict.fromkeys(KINDS)
    now = _mean_average(found, outcome, objects, objects)
    gains = {}
    for verdict in (LOCALISATION, CONFUSION, DUPLICATE, BACKGROUND):
        of_kind = judged.verdict == verdict
        mended = np.where(of_kind, IGNORED, outcome)
        corrected = found
        if verdict in (LOCALISATION, CONFUSION):
            better = _mendable(judged, truths, found, of_kind)
            mended[better] = TRUE_POSITIVE
            labels = found.labels.copy()
            labels[better] = truths.labels[judged.truth[better]]
            corrected = found._replace(labels=labels)
        gains[VERDICTS[verdict]] = _mean_average(corrected, mended, objects, objects) - now
    gains["missed"] = _mean_average(found, outcome, objects - missed, objects) - now
    return gains


def _mendable(judged, truths, found, of_kind):
    """The detections of a kind that would be correct with the right box or the right class.

    These are the best ones for an object that was not found. All others would be duplicates.
    """
    taken = np.isin(np.arange(len(truths.labels)), judged.truth[judged.verdict == CORRECT])
    candidates = of_kind & ((judged.verdict == LOCALISATION) | judged.on_object)
    settled = settle(np.where(candidates, judged.truth, -1), taken | truths.difficult, found.scores)
    return np.flatnonzero(settled.outcome == TRUE_POSITIVE)


def _mean_average(found, outcome, asked_for, objects):
    """The mean over classes with objects; a class none of whose objects is counted is perfect."""
    results = class_results(found, outcome, asked_for)
    return float(
        np.mean(
            [
                1.0 if each.ap is None else each.ap
                for each, count in zip(results, objects, strict=True)
                if count
            ]
        )
    )
