"""All metrics of one set of detections, as numbers, as a table and for a JSON file."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ssd_jax.evaluation.coco import CocoObjects, CocoResult, evaluate_coco
from ssd_jax.evaluation.errors import ErrorBreakdown, error_breakdown
from ssd_jax.evaluation.sizes import SizeResult, average_precision_by_size
from ssd_jax.evaluation.thresholds import (
    best_common_threshold,
    best_threshold,
    shown_score,
    thresholds_dict,
)
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes, VocResult, evaluate_voc
from ssd_jax.types import VOC_OFFSET


class Evaluation(NamedTuple):
    """The metrics, and the boxes of each image that they compared, in the devkit's pixels.

    `result` is the devkit's metric. `counted` also counts difficult objects, as happens if their
    flag was lost (SageMaker's VOC notebooks); `mxnet` is mxnet-ssd's metric, including its errors.
    `coco` is None if it was not requested. `image_sizes` are (height, width) in pixels. `seconds`
    is the time of the network and the metrics, None if no network was run.
    """

    result: VocResult
    counted: VocResult
    mxnet: VocResult
    coco: CocoResult | None
    ground_truths: list[GroundTruth]
    detections: list[ScoredBoxes]
    image_sizes: Int[np.ndarray, "I 2"]
    seconds: float | None = None


class ErrorAnalysis(NamedTuple):
    """Where average precision is lost: by object size, and by kind of error."""

    sizes: tuple[SizeResult, ...]
    errors: ErrorBreakdown

    def to_dict(self, classes: Sequence[str]) -> dict[str, Any]:
        """The breakdown for a JSON file."""
        return {
            "sizes": [each.to_dict() for each in self.sizes],
            "errors": self.errors.to_dict(classes),
        }


def measure_detections(
    ground_truths: list[GroundTruth],
    detections: list[ScoredBoxes],
    image_sizes: Int[np.ndarray, "I 2"],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    with_coco: bool = True,
    coco_objects: Sequence[CocoObjects] | None = None,
) -> Evaluation:
    """Compute all metrics of the detections; boxes are in the devkit's pixels.

    `iou_threshold` is for the VOC metrics. `coco_objects` is the `objects` of `evaluate_coco`.
    """
    metric = functools.partial(evaluate_voc, num_classes=num_classes, iou_threshold=iou_threshold)
    edges = [
        [record._replace(boxes=record.boxes - VOC_OFFSET) for record in records]
        for records in (ground_truths, detections)
    ]
    return Evaluation(
        result=metric(ground_truths, detections),
        counted=metric(ground_truths, detections, difficult="counted"),
        mxnet=metric(*edges, plus_one=False, iou_rule=">", counting="mxnet-ssd"),
        coco=evaluate_coco(*edges, num_classes=num_classes, objects=coco_objects)
        if with_coco
        else None,
        ground_truths=ground_truths,
        detections=detections,
        image_sizes=image_sizes,
    )


def diagnose(evaluation: Evaluation) -> ErrorAnalysis:
    """The breakdown by size and error, at the IoU threshold of the VOC metrics."""
    options = {
        "num_classes": len(evaluation.result.per_class),
        "iou_threshold": evaluation.result.protocol.iou_threshold,
    }
    images = evaluation.ground_truths, evaluation.detections
    return ErrorAnalysis(
        average_precision_by_size(*images, evaluation.image_sizes, **options),
        error_breakdown(*images, **options),
    )


def summary(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, float | None]:
    """The metrics by name: the means of all protocols, and the average precision of each class."""
    result, coco = evaluation.result, evaluation.coco
    values = {
        "map_voc07": result.map11,
        "map_voc12": result.map,
        "map_voc07_difficult_counted": evaluation.counted.map11,
        "map_voc12_difficult_counted": evaluation.counted.map,
        "map_mxnet": evaluation.mxnet.map11,
    }
    if coco:
        values["map_coco"] = coco.numbers["AP"]
    for name, of_class in zip(classes, result.per_class, strict=True):
        values[f"ap_voc07/{name}"] = of_class.ap11
        values[f"ap_voc12/{name}"] = of_class.ap
    if coco:
        values |= {f"ap_coco/{n}": ap for n, ap in zip(classes, coco.per_class, strict=True)}
    return values


def speed(evaluation: Evaluation) -> dict[str, float]:
    """`seconds` and `images_per_second`, the only values that differ between equal evaluations."""
    if evaluation.seconds is None:
        return {}
    rate = len(evaluation.detections) / evaluation.seconds
    return {"seconds": evaluation.seconds, "images_per_second": rate}


def results_dict(
    evaluation: Evaluation, diagnosis: ErrorAnalysis, classes: Sequence[str]
) -> dict[str, Any]:
    """Everything for a JSON file; docs/reports.md explains it."""
    return {
        "metrics": summary(evaluation, classes),
        "protocol": evaluation.result.protocol.to_dict(),
        "classes": list(classes),
        "coco": evaluation.coco.to_dict() if evaluation.coco else None,
        **diagnosis.to_dict(classes),
        "thresholds": thresholds_dict(evaluation.result, classes),
    }


def headline(evaluation: Evaluation, metric: str) -> str:
    """E.g. "mAP@.5 (VOC07 11-point) = 0.962"; `metric` is as in `config.evaluate.metric`."""
    threshold = f"{evaluation.result.protocol.iou_threshold:g}".removeprefix("0")
    name, value = {
        "voc07": (f"mAP@{threshold} (VOC07 11-point)", evaluation.result.map11),
        "voc12": (f"mAP@{threshold} (VOC12 area)", evaluation.result.map),
        "mxnet": (f"mAP@{threshold} (mxnet-ssd 11-point)", evaluation.mxnet.map11),
        "coco": ("AP@[.5:.95] (COCO)", evaluation.coco and evaluation.coco.numbers["AP"]),
    }[metric]
    if metric == "coco" and evaluation.coco is None:
        return f"{name} was not measured"
    return f"{name} = " + ("undefined: no objects" if value is None else f"{value:.3f}")


def protocol_of(evaluation: Evaluation, metric: str) -> str:
    """The protocol of the headline by a metric, in words."""
    if metric == "coco":
        return evaluation.coco.describe() if evaluation.coco else ""
    result = evaluation.mxnet if metric == "mxnet" else evaluation.result
    return result.protocol.describe("area" if metric == "voc12" else "11-point")


def table(evaluation: Evaluation, diagnosis: ErrorAnalysis, classes: Sequence[str]) -> str:
    """A table of average precisions and best scores, then COCO's numbers, sizes and errors."""
    result, coco = evaluation.result, evaluation.coco
    width = max(map(len, ("class", *classes)))
    per_class = coco.per_class if coco else [None] * len(classes)
    lines = [
        f"{'class':{width}}  11-point   area   COCO  objects  best F1  at score  precision  recall"
    ]
    for name, of_class, ap in zip(classes, result.per_class, per_class, strict=True):
        averages = f"{_number(of_class.ap11)}  {_number(of_class.ap)}  {_number(ap)}"
        best, *others = best_threshold(of_class) or [None] * 4
        score, f1, precision, recall = map(_number, (shown_score(best), *others))
        worth = f"{f1:>9}{score:>10}{precision:>11}{recall:>8}"
        lines.append(f"{name:{width}}     {averages}  {of_class.npos:7,}{worth}")
    means = (result.map11, result.map, coco and coco.numbers["AP"])
    lines.append(f"{'mean':{width}}     {'  '.join(map(_number, means))}")
    if common := best_common_threshold(result.per_class):
        lines.append(
            f"one score threshold for all classes: {shown_score(common.score):.3f}, with an F1 of "
            f"{common.f1:.3f}, a precision of {common.precision:.3f} and a recall of "
            f"{common.recall:.3f}"
        )
    lines.append(
        f"with difficult objects counted {_number(evaluation.counted.map11)}, by mxnet-ssd's own "
        f"metric {_number(evaluation.mxnet.map11)} (11-point)"
    )
    if coco:
        lines.append("COCO: " + _listed(coco.numbers))
        reasons = {}
        for name, reason in coco.undefined.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"      no {', '.join(names)}: {why}" for why, names in reasons.items()]
    for unit, text in (("pixels", "size"), ("image", "fraction of the image side")):
        by_name = {f"{s.name}:": s.ap for s in diagnosis.sizes if s.unit == unit and s.objects}
        lines.append(f"area AP by {text}: " + _listed(by_name, separator=", "))
    lines.append(_errors_line(diagnosis.errors))
    lines.append(result.protocol.describe("11-point"))
    if coco:
        lines.append(coco.describe())
    return "\n".join(lines)


def _errors_line(errors: ErrorBreakdown) -> str:
    """The counts of all classes as one line."""
    total = errors.total
    tally = ", ".join(f"{total[name]:,} {name}" for name in total if name != "objects")
    return f"best {total['objects']:,} detections and objects: {tally}"


def devkit_pixels(
    boxes: Float[np.ndarray, "N 4"], size: Int[np.ndarray, "2"] | tuple[int, int]
) -> Float[np.ndarray, "N 4"]:
    """Normalised edges to pixels counted from 1, both corners inside, as in VOC."""
    height, width = size
    return boxes.astype(np.float64) * [width, height, width, height] + VOC_OFFSET


def annotated_pixels(
    boxes: Float[np.ndarray, "N 4"], size: Int[np.ndarray, "2"] | tuple[int, int]
) -> Float[np.ndarray, "N 4"]:
    """The same for ground truth, rounded to undo the rounding errors of float32."""
    return np.round(devkit_pixels(boxes, size), 2)


def _listed(values, separator="  "):
    return separator.join(f"{name} {_number(value).strip()}" for name, value in values.items())


def _number(value):
    return "    -" if value is None else f"{value:.3f}"
