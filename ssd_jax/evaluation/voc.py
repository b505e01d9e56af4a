"""Mean average precision by the rules of the PASCAL VOC development kit, in NumPy.

The rules are those of the devkit's VOCevaldet.m
(http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html, section 3.4):

* The detections of a class in all images are sorted by falling score; equal scores keep their
  order, image by image.
* Each is compared only with the object of its image and class with the highest IoU (the first of
  equals). Below the threshold, or if that object is already taken, it is a false positive.
* If that object is `difficult`, the detection counts neither way. Difficult objects are not
  counted.

VOC2007 averages the precision at 11 recalls; VOC2010 and later use the whole area.

`counting` "mxnet-ssd" is the counting of mxnet-ssd's evaluate/eval_metric.py, with its errors:

* An image's objects of a class are counted only if the class has a detection in the image that is
  not ignored; difficult ones are then left out, as they should be.
* If a class has no detection in an image, its difficult objects are counted too.
* A class without objects has an average of 0, not none, as soon as it is detected somewhere.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from ssd_jax.errors import UserError, check_choice
from ssd_jax.types import NORMALISED_BOXES_END

IouRule = Literal[">=", ">"]
DifficultRule = Literal["ignored", "counted"]
Counting = Literal["devkit", "mxnet-ssd"]

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2

# The devkit's 0:0.1:1 as py-faster-rcnn and GluonCV have it in NumPy, where 3 * 0.1 > 0.3: a recall
# of exactly 3 in 10 does not reach the fourth threshold. With np.linspace it would.
RECALL_THRESHOLDS = np.arange(0, 1.1, 0.1)


class GroundTruth(NamedTuple):
    """The objects of one image; boxes are xyxy in the pixels of the annotation."""

    boxes: Num[np.ndarray, "N 4"]
    labels: Int[np.ndarray, "N"]
    difficult: Bool[np.ndarray, "N"]


class ScoredBoxes(NamedTuple):
    """The detections of one image; boxes are xyxy in the same pixels as its ground truth."""

    boxes: Num[np.ndarray, "K 4"]
    scores: Num[np.ndarray, "K"]
    labels: Int[np.ndarray, "K"]


class Matches(NamedTuple):
    """The outcomes of the detections of all images, concatenated.

    `outcome` is FALSE_POSITIVE, TRUE_POSITIVE or IGNORED. `truth` is the object that a detection
    took, as an index into the concatenated ground truth, and -1 for all but true positives.
    """

    outcome: Int[np.ndarray, "D"]
    truth: Int[np.ndarray, "D"]


class VocProtocol(NamedTuple):
    """The choices that an mAP depends on, to be reported with the number."""

    iou_threshold: float
    iou_rule: IouRule
    plus_one: bool
    difficult: DifficultRule
    counting: Counting
    images: int

    def describe(self, average: Literal["11-point", "area"]) -> str:
        """E.g. "VOC07 11-point, IoU >= 0.5, difficult ignored, +1 pixels, 4952 images"."""
        year = {"11-point": "VOC07", "area": "VOC12"}[average]
        rules = year if self.counting == "devkit" else self.counting
        pixels = "+1 pixels" if self.plus_one else "continuous boxes"
        return (
            f"{rules} {average}, IoU {self.iou_rule} {self.iou_threshold:g}, difficult "
            f"{self.difficult}, {pixels}, {self.images} images"
        )

    def to_dict(self) -> dict[str, str | float | bool | int]:
        """The protocol for a JSON file, with both descriptions."""
        return self._asdict() | {
            "map11": self.describe("11-point"),
            "map": self.describe("area"),
        }


class ClassResult(NamedTuple):
    """The result of one class. The averages are None if it has no objects.

    `npos` is the number of objects that count. The curve has one point for each detection that is
    not ignored, by falling score.
    """

    ap11: float | None
    ap: float | None
    npos: int
    tp: int
    fp: int
    recall: Float[np.ndarray, "K"]
    precision: Float[np.ndarray, "K"]
    scores: Float[np.ndarray, "K"]


class VocResult(NamedTuple):
    """All classes by id, and the means over those that have objects (None if none has)."""

    per_class: tuple[ClassResult, ...]
    map11: float | None
    map: float | None
    protocol: VocProtocol


def evaluate_voc(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    plus_one: bool = True,
    iou_rule: IouRule = ">=",
    difficult: DifficultRule = "ignored",
    counting: Counting = "devkit",
) -> VocResult:
    """Compute the average precisions of detections; both arguments have one entry per image.

    `plus_one` measures boxes in whole pixels, xmax - xmin + 1, as the devkit does. The devkit
    compares by ">=", py-faster-rcnn's voc_eval.py and mxnet-ssd by ">". `difficult` "counted"
    treats difficult objects like all others.

    Raises:
      UserError: `plus_one` with normalised boxes; `metrics.devkit_pixels` converts them.
    """
    for name, got, choices in (
        ("iou_rule", iou_rule, IouRule),
        ("difficult", difficult, DifficultRule),
        ("counting", counting, Counting),
    ):
        check_choice(name, got, get_args(choices))
    if plus_one:
        _check_in_pixels(ground_truths)
    if difficult == "counted":
        ground_truths = [
            truth._replace(difficult=np.zeros_like(truth.difficult)) for truth in ground_truths
        ]
    outcome = match_detections(
        ground_truths,
        detections,
        num_classes=num_classes,
        iou_threshold=iou_threshold,
        plus_one=plus_one,
        iou_rule=iou_rule,
    ).outcome
    truth = concatenate(ground_truths)
    wanted = ~truth.difficult
    if counting == "mxnet-ssd":
        group, found_group = _groups(ground_truths, num_classes), _groups(detections, num_classes)
        wanted &= np.isin(group, found_group[outcome != IGNORED])
        wanted |= ~np.isin(group, found_group)
    npos = np.bincount(truth.labels[wanted], minlength=num_classes)
    per_class = class_results(concatenate(detections), outcome, npos)
    if counting == "mxnet-ssd":
        per_class = tuple(
            each._replace(ap11=0.0, ap=0.0) if not each.npos and len(each.scores) else each
            for each in per_class
        )
    return VocResult(
        per_class,
        map11=mean_of_defined([result.ap11 for result in per_class]),
        map=mean_of_defined([result.ap for result in per_class]),
        protocol=VocProtocol(
            iou_threshold, iou_rule, plus_one, difficult, counting, len(ground_truths)
        ),
    )


def _check_in_pixels(ground_truths: Sequence[GroundTruth]) -> None:
    ends = [truth.boxes[:, 2:].max() for truth in ground_truths if len(truth.boxes)]
    # Counted from 1, a box of one pixel in the corner also ends at 1.
    if ends and max(ends) < NORMALISED_BOXES_END and any(end != round(end) for end in ends):
        raise UserError(
            f"evaluate_voc: got boxes that end at {max(ends):.3g}, expected pixels. Convert "
            "normalised boxes with `evaluation.metrics.devkit_pixels`, or use `plus_one=False`."
        )


def match_detections(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    plus_one: bool = True,
    iou_rule: IouRule = ">=",
) -> Matches:
    """Separate true from false positives; the arguments are those of `evaluate_voc`."""
    if not 0 < iou_threshold <= 1:
        raise UserError(f"got an IoU threshold of {iou_threshold}; expected 0 < threshold <= 1")
    truth, iou = nearest_objects(
        ground_truths, detections, num_classes=num_classes, plus_one=plus_one
    )
    near = iou >= iou_threshold if iou_rule == ">=" else iou > iou_threshold
    difficult = concatenate(ground_truths).difficult
    return settle(np.where(near, truth, -1), difficult, concatenate(detections).scores)


def nearest_objects(
    ground_truths: Sequence[GroundTruth],
    detections: Sequence[ScoredBoxes],
    *,
    num_classes: int,
    plus_one: bool = True,
    any_class: bool = False,
) -> tuple[Int[np.ndarray, "D"], Float[np.ndarray, "D"]]:
    """For each detection the object of its image with the highest IoU, and that IoU.

    Objects are indices into the concatenated ground truth, -1 if none touches the detection. Only
    objects of the detection's class are considered, unless `any_class`.
    """
    _check(ground_truths, detections, num_classes)
    truths, found = concatenate(ground_truths), concatenate(detections)
    of_found, of_truths = (
        _images(records) if any_class else _groups(records, num_classes)
        for records in (detections, ground_truths)
    )
    return _best_truths(
        found.boxes.astype(np.float64),
        of_found,
        truths.boxes.astype(np.float64),
        of_truths,
        plus_one,
    )


def settle(
    truth: Int[np.ndarray, "D"], ignored: Bool[np.ndarray, "N"], scores: Num[np.ndarray, "D"]
) -> Matches:
    """Assign each object to the best detection that claims it; `truth` is the claim, -1 for none.

    A detection that claims an `ignored` object counts neither way.
    """
    on_ignored = np.append(ignored, False)[truth]  # [-1]: no object, not ignored
    claims = np.flatnonzero((truth >= 0) & ~on_ignored)
    claims = claims[np.argsort(-scores[claims], kind="stable")]
    _, first = np.unique(truth[claims], return_index=True)
    outcome = np.full(len(truth), FALSE_POSITIVE)
    outcome[on_ignored] = IGNORED
    outcome[claims[first]] = TRUE_POSITIVE
    return Matches(outcome, np.where(outcome == TRUE_POSITIVE, truth, -1))


def class_results(
    found: ScoredBoxes, outcome: Int[np.ndarray, "D"], npos: Int[np.ndarray, "C"]
) -> tuple[ClassResult, ...]:
    """The curve and averages of each class; `found` has the concatenated detections."""
    results = []
    for label, objects in enumerate(npos.tolist()):
        rows = np.flatnonzero((found.labels == label) & (outcome != IGNORED))
        rows = rows[np.argsort(-found.scores[rows], kind="stable")]
        results.append(_class_result(outcome[rows] == TRUE_POSITIVE, found.scores[rows], objects))
    return tuple(results)


def mean_of_defined(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def concatenate(records: Sequence[GroundTruth] | Sequence[ScoredBoxes]):
    """The records of all images concatenated into one."""
    whole = type(records[0])(*map(np.concatenate, zip(*records, strict=True)))
    # Flags of 0 and 1 would index where flags select.
    if isinstance(whole, GroundTruth):
        return whole._replace(difficult=whole.difficult.astype(bool))
    return whole


def _groups(records, num_classes):
    """For each box the number of its group: the boxes of its class in its image."""
    return _images(records) * num_classes + concatenate(records).labels


def _images(records):
    return np.repeat(np.arange(len(records)), [len(record.labels) for record in records])


def _best_truths(boxes, groups, truth_boxes, truth_groups, plus_one):
    """For each box the object of its own group with the highest IoU (-1: none touches it).

    Each round compares one object of every group at once, so there are as many rounds as the
    largest group has objects.
    """
    by_group = np.argsort(truth_groups, kind="stable")
    sorted_groups = truth_groups[by_group]
    start = np.searchsorted(sorted_groups, groups, side="left")
    count = np.searchsorted(sorted_groups, groups, side="right") - start
    truth, best = np.full(len(boxes), -1), np.zeros(len(boxes))
    for place in range(count.max(initial=0)):
        rows = np.flatnonzero(count > place)
        candidates = by_group[start[rows] + place]
        iou = _paired_iou(boxes[rows], truth_boxes[candidates], plus_one)
        better = iou > best[rows]
        best[rows[better]] = iou[better]
        truth[rows[better]] = candidates[better]
    return truth, best


def _paired_iou(a, b, plus_one):
    one = 1.0 if plus_one else 0.0
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + one
    overlap = np.prod(np.maximum(sides, 0.0), axis=1)
    area_a, area_b = (np.prod(box[:, 2:] - box[:, :2] + one, axis=1) for box in (a, b))
    union = area_a + area_b - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def _class_result(hits, scores, npos):
    """`hits` by falling score, without ignored detections, so precision is never 0 / 0."""
    tp = np.cumsum(hits)
    precision = tp / np.arange(1, len(hits) + 1)
    found = int(np.sum(hits))
    if not npos:
        recall = np.zeros(len(hits))
        return ClassResult(None, None, 0, found, len(hits) - found, recall, precision, scores)
    recall = tp / npos
    # The best precision at this recall or any higher one; 0 after the last detection.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    ap11 = np.mean(envelope[np.searchsorted(recall, RECALL_THRESHOLDS)])
    ap = np.sum(np.diff(recall, prepend=0.0) * envelope[:-1])
    return ClassResult(
        float(ap11), float(ap), npos, found, len(hits) - found, recall, precision, scores
    )


def _check(ground_truths, detections, num_classes):
    if not ground_truths or len(ground_truths) != len(detections):
        raise UserError(
            f"got ground truth for {len(ground_truths)} images and detections for "
            f"{len(detections)}; expected the same images, at least one. "
            "Give empty arrays for an image without detections"
        )
    for kind, records in (("ground truth", ground_truths), ("detections", detections)):
        for image, record in enumerate(records):
            if len({len(column) for column in record}) != 1:
                lengths = {name: len(column) for name, column in record._asdict().items()}
                raise UserError(
                    f"{kind} of image {image}: got {lengths}; expected columns of equal length"
                )
        labels = np.concatenate([record.labels for record in records])
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise UserError(
                f"{kind}: got labels from {labels.min()} to {labels.max()}; expected class ids "
                f"0 to {num_classes - 1}, without background"
            )
    if np.isnan(np.concatenate([found.scores for found in detections])).any():
        raise UserError(
            "got NaN among the scores; expected numbers. Check whether the training run diverged"
        )
