"""Average precision by the size of the objects, in pixels and as a fraction of their image.

Sizes are the square roots of box areas. In pixels the limits are COCO's, 32 and 96. For fractions
of the image, sqrt(box area / image area), each limit is twice the one before, like the strides of
the network's feature maps. Each size uses the rules of the VOC metric, except that objects of other
sizes, the detections on them, and detections of other sizes that are not correct count neither way.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from ssd_jax.evaluation.voc import (
    FALSE_POSITIVE,
    IGNORED,
    GroundTruth,
    ScoredBoxes,
    class_results,
    concatenate,
    mean_of_defined,
    nearest_objects,
    settle,
)

Unit = Literal["pixels", "image"]
LIMITS: dict[Unit, tuple[float, ...]] = {
    "pixels": (0, 32, 96, math.inf),
    "image": (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, math.inf),
}


class SizeResult(NamedTuple):
    """Objects with `low` <= size < `high`: their number, and the mean average precision (area).

    The average is None if there are no objects.
    """

    unit: Unit
    low: float
    high: float
    objects: int
    ap: float | None

    @property
    def name(self) -> str:
        """E.g. "32 to 96 px", "1/16 to 1/8"."""
        low, high = (_written(limit, self.unit) for limit in (self.low, self.high))
        text = f"over {low}" if math.isinf(self.high) else f"{low} to {high}"
        text = f"under {high}" if not self.low else text
        return f"{text} px" if self.unit == "pixels" else text

    def to_dict(self) -> dict[str, Any]:
        """The range for a JSON file; the upper limit is null if there is none."""
        high = None if math.isinf(self.high) else self.high
        return {"name": self.name, **self._asdict(), "high": high}


def average_precision_by_size(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    image_sizes: Int[np.ndarray, "I 2"],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
) -> tuple[SizeResult, ...]:
    """The average precision of each range of `LIMITS`; boxes are in the devkit's pixels.

    `image_sizes` are (height, width) in pixels.
    """
    truths, found = concatenate(ground_truths), concatenate(detections)
    nearest, iou = nearest_objects(ground_truths, detections, num_classes=num_classes)
    claims = np.where(iou >= iou_threshold, nearest, -1)
    results = []
    for unit, limits in LIMITS.items():
        of_truths, of_found = (
            _sizes(records, image_sizes, unit) for records in (ground_truths, detections)
        )
        for low, high in itertools.pairwise(limits):
            asked_for = (low <= of_truths) & (of_truths < high) & ~truths.difficult
            outcome = settle(claims, ~asked_for, found.scores).outcome
            other_size = (of_found < low) | (of_found >= high)
            outcome[(outcome == FALSE_POSITIVE) & other_size] = IGNORED
            objects = np.bincount(truths.labels[asked_for], minlength=num_classes)
            average = mean_of_defined([c.ap for c in class_results(found, outcome, objects)])
            results.append(SizeResult(unit, low, high, int(objects.sum()), average))
    return tuple(results)


def _sizes(records, image_sizes, unit):
    boxes = concatenate(records).boxes.astype(np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    if unit == "image":
        counts = [len(record.labels) for record in records]
        areas /= np.repeat(image_sizes.astype(np.float64).prod(axis=1), counts)
    return np.sqrt(np.maximum(areas, 0))


def _written(limit, unit):
    return f"{limit:g}" if unit == "pixels" or not limit else f"1/{1 / limit:g}"
