"""The score threshold with the best F1, from which on detections are worth showing.

F1 is the harmonic mean of precision and recall (van Rijsbergen 1979), here on the curve that the
average precision is computed from: with the same matches and the same rule for difficult objects.
"""

import decimal
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ssd_jax.evaluation.voc import ClassResult, VocResult


class Threshold(NamedTuple):
    """Precision, recall and F1 of the detections of at least `score`."""

    score: float
    f1: float
    precision: float
    recall: float


def best_threshold(result: ClassResult) -> Threshold | None:
    """The best threshold of a class; the highest of equally good ones.

    None if the class has no objects, or none was found.
    """
    return _best(_hits(result), result.scores, result.npos)


def best_common_threshold(per_class: Sequence[ClassResult]) -> Threshold | None:
    """The best common threshold; detections and objects of all classes are counted together."""
    return _best(
        np.concatenate([_hits(result) for result in per_class]),
        np.concatenate([result.scores for result in per_class]),
        sum(result.npos for result in per_class),
    )


def thresholds_dict(result: VocResult, classes: Sequence[str]) -> dict[str, Any]:
    """All thresholds for a JSON file."""
    common = best_common_threshold(result.per_class)
    of_classes = {
        name: best_threshold(each) for name, each in zip(classes, result.per_class, strict=True)
    }
    return {
        "iou_threshold": result.protocol.iou_threshold,
        "all": common and common._asdict(),
        "per_class": {name: each and each._asdict() for name, each in of_classes.items()},
    }


def _hits(result: ClassResult) -> Bool[np.ndarray, "K"]:
    """Which detections of the curve, by falling score, are correct."""
    right = np.rint(result.precision * np.arange(1, len(result.scores) + 1))
    return np.diff(right, prepend=0) > 0


def _best(
    hits: Bool[np.ndarray, "K"], scores: Float[np.ndarray, "K"], objects: int
) -> Threshold | None:
    if not objects or not hits.any():
        return None
    order = np.argsort(-scores, kind="stable")
    hits, scores = hits[order], scores[order]
    right, shown = np.cumsum(hits), np.arange(1, len(hits) + 1)
    # A threshold shows all detections with an equal score, or none.
    last_of_score = np.append(scores[1:] < scores[:-1], True)
    f1 = np.where(last_of_score, 2 * right / (shown + objects), 0.0)
    best = int(np.argmax(f1))
    return Threshold(
        score=float(scores[best]),
        f1=float(f1[best]),
        precision=float(right[best] / shown[best]),
        recall=float(right[best] / objects),
    )


def shown_score(score: float | None) -> float | None:
    """The score rounded down to three digits; rounded up it would show fewer detections."""
    if score is None:
        return None
    return float(decimal.Decimal(float(score)).quantize(decimal.Decimal("0.001"), "ROUND_DOWN"))
