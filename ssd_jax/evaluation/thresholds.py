"""From which score on detections are worth showing: the one with the best F1.

F1 is the harmonic mean of precision and recall (van Rijsbergen 1979), here of the curve that the
average precision comes from: the same matches, and difficult objects by the same rule.
"""

import decimal
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ssd_jax.evaluation.voc import ClassResult, VocResult


class Threshold(NamedTuple):
    """What detections of at least `score` are worth."""

    score: float
    f1: float
    precision: float
    recall: float


def best_threshold(result: ClassResult) -> Threshold | None:
    """The threshold of a class; the highest of equally good ones.

    None where there is no object to be found, or none was found.
    """
    return _best(_hits(result), result.scores, result.npos)


def best_common_threshold(per_class: Sequence[ClassResult]) -> Threshold | None:
    """The one threshold for all classes, whose detections and objects are counted together."""
    return _best(
        np.concatenate([_hits(result) for result in per_class]),
        np.concatenate([result.scores for result in per_class]),
        sum(result.npos for result in per_class),
    )


def thresholds_dict(result: VocResult, classes: Sequence[str]) -> dict[str, Any]:
    """All of them for a JSON file."""
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
    """Which detections of the curve, by falling score, are right."""
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
    # A threshold shows all detections of its score, or none.
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
    """With three digits, rounded down: above the score itself fewer detections would be taken."""
    if score is None:
        return None
    return float(decimal.Decimal(float(score)).quantize(decimal.Decimal("0.001"), "ROUND_DOWN"))
