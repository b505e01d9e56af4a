"""COCO's detection metric (cocodataset.org/#detection-eval), computed by faster-coco-eval.

The twelve numbers are those of pycocotools: average precision AP and recall AR, over ten IoU
thresholds from 0.5 to 0.95, at 101 recalls, for at most 100 detections per class and image; s, m
and l are objects below 32 x 32 pixels, up to 96 x 96, and above. Differences from the VOC metric:

* A detection is matched to the object with the highest IoU that is still free.
* A crowd region counts neither way. A detection is on it if that fraction of the detection's area
  is, and any number of detections may be. Objects that VOC calls difficult are treated the same.
* Box sizes are real numbers of pixels, without + 1.
"""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Num

from ssd_jax.errors import UserError
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes

# (precision or recall, IoU threshold or None for the mean of all, size, most detections)
NUMBERS = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.5, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "APs": ("precision", None, "small", 100),
    "APm": ("precision", None, "medium", 100),
    "APl": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "ARs": ("recall", None, "small", 100),
    "ARm": ("recall", None, "medium", 100),
    "ARl": ("recall", None, "large", 100),
}
_NOTHING_TO_FIND = {
    "all": "no objects",
    "small": "no objects of at most 32 x 32 pixels",
    "medium": "no objects from 32 x 32 to 96 x 96 pixels",
    "large": "no objects of at least 96 x 96 pixels",
}
# Decimals of a pixel. Rounding to so many removes the errors of converting boxes, so that a tie at
# a threshold is decided by the numbers in the file; the difference is far too small to matter.
_DECIMALS = 9


class CocoObjects(NamedTuple):
    """The objects of one image in a COCO file; `area` is the area of their outlines."""

    area: Num[np.ndarray, "N"]
    crowd: Bool[np.ndarray, "N"]


class CocoResult(NamedTuple):
    """The numbers by name, None if `undefined` has a reason; `per_class` is the AP by class id."""

    numbers: dict[str, float | None]
    undefined: dict[str, str]
    per_class: tuple[float | None, ...]
    images: int

    def describe(self) -> str:
        """The protocol, to be reported with the numbers."""
        return (
            f"COCO, IoU 0.5:0.95, 101 recalls, at most 100 detections a class and image, crowd and "
            f"difficult objects ignored, {self.images} images"
        )

    def to_dict(self) -> dict[str, str | float | dict[str, str] | None]:
        """The result for a JSON file."""
        return {**self.numbers, "undefined": self.undefined, "protocol": self.describe()}


def evaluate_coco(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    *,
    num_classes: int,
    objects: Sequence[CocoObjects] | None = None,
) -> CocoResult:
    """Compute the twelve numbers; boxes are edges in pixels, so their width is xmax - xmin.

    Without `objects` the area of an object is that of its box, and difficult objects are crowds.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if not ground_truths or len(ground_truths) != len(detections):
        raise UserError(
            f"got ground truth for {len(ground_truths)} images and detections for "
            f"{len(detections)}; expected the same images, at least one"
        )
    categories = [{"id": label} for label in range(1, num_classes + 1)]
    # The library only needs ids. They count from 1, because it takes 0 for none.
    images = [{"id": image} for image in range(1, len(ground_truths) + 1)]
    shared = {"images": images, "categories": categories}
    with _collector_paused():
        truths = COCO(shared | {"annotations": _objects(ground_truths, objects)})
        found = COCO(shared | {"annotations": _scored(detections)})
        metric = COCOeval_faster(truths, found, "bbox")
        metric.evaluate()
        metric.accumulate()

    numbers = {
        name: _mean(_column(metric, quantity, size, most, threshold))
        for name, (quantity, threshold, size, most) in NUMBERS.items()
    }
    precision = _column(metric, "precision", "all", 100, None)
    return CocoResult(
        numbers,
        undefined={
            name: _NOTHING_TO_FIND[NUMBERS[name][2]]
            for name, value in numbers.items()
            if value is None
        },
        per_class=tuple(_mean(precision[..., label]) for label in range(num_classes)),
        images=len(ground_truths),
    )


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Disable garbage collection, which would walk the records of all boxes again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _objects(ground_truths, objects):
    records = _annotations(ground_truths)
    if objects is None:
        crowds = [flag for truth in ground_truths for flag in truth.difficult.tolist()]
        areas = [record["area"] for record in records]
    else:
        crowds = [flag for of_image in objects for flag in of_image.crowd.tolist()]
        areas = [area for of_image in objects for area in of_image.area.tolist()]
    for record, crowd, area in zip(records, crowds, areas, strict=True):
        record.update(iscrowd=int(crowd), area=area)
    return records


def _scored(detections):
    records = _annotations(detections)
    scores = [score for found in detections for score in found.scores.tolist()]
    for record, score in zip(records, scores, strict=True):
        record["score"] = score
    return records


def _annotations(images):
    """One record per box, as the library's reader of result files makes them, but faster."""
    counts = [len(image.labels) for image in images]
    boxes = np.concatenate([image.boxes for image in images]).astype(np.float64)
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(_DECIMALS)
    columns = (
        np.repeat(np.arange(1, len(images) + 1), counts).tolist(),
        (np.concatenate([image.labels for image in images]) + 1).tolist(),
        sides.tolist(),
        (sides[:, 2] * sides[:, 3]).tolist(),
    )
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area}
        for number, (image, category, box, area) in enumerate(zip(*columns, strict=True), 1)
    ]


def _column(metric, quantity, size, most, threshold):
    """[thresholds, (recalls,) classes] for one size and one limit of detections."""
    params = metric.params
    values = metric.eval[quantity][..., params.areaRngLbl.index(size), params.maxDets.index(most)]
    return values if threshold is None else values[np.isclose(params.iouThrs, threshold)]


def _mean(values):
    """The mean over classes with objects; -1 marks a class without."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else None
