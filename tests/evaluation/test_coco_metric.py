import contextlib
import io

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scenes import found, truth

from ssd_jax.errors import UserError
from ssd_jax.evaluation.coco import NUMBERS, CocoObjects, evaluate_coco
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes


def numbers(truths, detections, **options):
    return evaluate_coco(truths, detections, **{"num_classes": 1} | options).numbers


SMALL, LARGE = [0, 0, 20, 20], [100, 100, 300, 300]

# ---- literals ----


def test_one_of_two_objects_found():
    # Precision 1 at the recalls 0, 0.01, .. 0.5: 51 of 101.
    result = numbers([truth(SMALL, LARGE)], [found(SMALL, scores=[0.9])])
    assert result["AP"] == result["AP50"] == pytest.approx(51 / 101)
    assert result["AR1"] == result["AR100"] == pytest.approx(0.5)
    assert (result["APs"], result["APl"]) == (1.0, 0.0)


def test_an_overlap_of_three_quarters_counts_at_six_of_ten_thresholds():
    result = numbers([truth([0, 0, 100, 100])], [found([0, 0, 100, 75], scores=[0.9])])
    assert result["AP"] == pytest.approx(0.6)  # 0.5, 0.55, .. 0.75
    assert result["AP50"] == result["AP75"] == pytest.approx(1.0)


def test_a_crowd_takes_any_number_of_detections_and_is_not_asked_for():
    inside = [[100, 100, 150, 150], [200, 200, 250, 250]]  # of little IoU, but all inside
    detections = [found(*inside, SMALL, scores=[0.9, 0.8, 0.7])]
    assert numbers([truth(LARGE, SMALL)], detections)["AP50"] < 0.3
    crowd = [truth(LARGE, SMALL, difficult=[True, False])]
    assert numbers(crowd, detections)["AP50"] == pytest.approx(1.0)
    told = [CocoObjects(np.array([1.0, 400.0]), np.array([True, False]))]
    assert numbers([truth(LARGE, SMALL)], detections, objects=told)["AP50"] == pytest.approx(1.0)


def test_the_given_area_says_how_large_an_object_is():
    images = [truth(LARGE)], [found(LARGE, scores=[0.9])]
    outline = [CocoObjects(np.array([1000.0]), np.array([False]))]
    assert numbers(*images)["APs"] is None
    assert numbers(*images, objects=outline)["APs"] == pytest.approx(1.0)


def test_what_is_undefined_has_a_reason():
    result = evaluate_coco([truth(SMALL)], [found(SMALL, scores=[1.0])], num_classes=2)
    assert result.numbers["APm"] is result.numbers["ARl"] is None
    assert result.undefined == {
        "APm": "no objects from 32 x 32 to 96 x 96 pixels",
        "ARm": "no objects from 32 x 32 to 96 x 96 pixels",
        "APl": "no objects of at least 96 x 96 pixels",
        "ARl": "no objects of at least 96 x 96 pixels",
    }
    assert result.per_class == (pytest.approx(1.0), None)
    nothing = evaluate_coco([truth()], [found(SMALL, scores=[1.0])], num_classes=1)
    assert set(nothing.numbers.values()) == {None}
    assert nothing.undefined["AP"] == "no objects"


def test_nothing_detected_is_zero():
    assert numbers([truth(SMALL)], [found()])["AP"] == 0.0


def test_the_result_names_its_protocol():
    result = evaluate_coco([truth(SMALL)] * 3, [found()] * 3, num_classes=1)
    assert result.to_dict()["protocol"].startswith("COCO, IoU 0.5:0.95, 101 recalls")
    assert result.to_dict()["protocol"].endswith("3 images")


def test_images_without_their_detections_are_refused():
    with pytest.raises(UserError, match="1 images and detections for 2"):
        numbers([truth()], [found()] * 2)


# ---- laws, and the reference ----


def random_problem(seed, *, images=8, classes=3):
    """Coordinates with one decimal on a coarse grid and few scores: ties are common."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner, side = rng.integers(0, 30, (n, 2)), rng.integers(1, 40, (n, 2))
        return (np.concatenate([corner, corner + side], axis=1) * 4.1).round(1)

    truths, detections, objects = [], [], []
    for _ in range(images):
        n, k = rng.integers(0, 6), rng.integers(0, 15)
        labels = rng.integers(0, classes, n)
        objects_boxes = boxes(n)
        near = rng.integers(0, n, k) if n else np.zeros(k, int)
        shifted = (objects_boxes[near] if n else boxes(k)) + 4.1 * rng.integers(-2, 3, (k, 4))
        shifted = shifted.round(1)
        valid = (shifted[:, 2:] > shifted[:, :2]).all(axis=1, keepdims=True)
        truths.append(GroundTruth(objects_boxes, labels, np.zeros(n, bool)))
        keep = valid & (rng.random((k, 1)) < 0.8)
        detections.append(
            ScoredBoxes(
                np.where(keep, shifted, boxes(k)),
                rng.integers(0, 9, k) / 8,
                labels[near] if n else rng.integers(0, classes, k),
            )
        )
        areas = rng.random(n) * np.prod(objects_boxes[:, 2:] - objects_boxes[:, :2], axis=1)
        objects.append(CocoObjects(areas, rng.random(n) < 0.2))
    return truths, detections, objects


def reference(truths, detections, objects, num_classes):
    """(the twelve numbers, AP by class) of pycocotools, -1 for what is undefined."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def records(images):
        for image, each in enumerate(images):
            for row, (box, label) in enumerate(zip(each.boxes, each.labels, strict=True)):
                sides = [*box[:2].tolist(), *(box[2:] - box[:2]).round(9).tolist()]
                yield image, row, {"image_id": image, "category_id": int(label), "bbox": sides}

    annotations = [
        record
        | {
            "id": number,
            "area": float(objects[image].area[row]),
            "iscrowd": int(objects[image].crowd[row]),
        }
        for number, (image, row, record) in enumerate(records(truths), 1)
    ]
    results = [
        record | {"score": float(detections[image].scores[row])}
        for image, row, record in records(detections)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(truths))],
            "categories": [{"id": label} for label in range(num_classes)],
            "annotations": annotations,
        }
        coco.createIndex()
        metric = COCOeval(coco, coco.loadRes(results), "bbox")
        metric.evaluate()
        metric.accumulate()
        metric.summarize()
    precision = metric.eval["precision"][..., 0, 2]
    per_class = [
        of_class[of_class > -1].mean() if (of_class > -1).any() else -1
        for of_class in np.moveaxis(precision, -1, 0)
    ]
    return metric.stats.tolist(), per_class


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_pycocotools(seed):
    problem = random_problem(seed)
    result = evaluate_coco(*problem[:2], num_classes=4, objects=problem[2])
    expected, per_class = reference(*problem, num_classes=4)
    values = [-1 if value is None else value for value in result.numbers.values()]
    assert values == pytest.approx(expected, abs=1e-12)
    assert [-1 if ap is None else ap for ap in result.per_class] == pytest.approx(per_class)
    assert list(NUMBERS) == list(result.numbers)


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=15, deadline=None)
def test_ground_truth_as_detections_is_perfect(seed):
    truths, _, _ = random_problem(seed)
    hypothesis.assume(any(len(each.labels) for each in truths))
    rng = np.random.default_rng(seed)
    answers = [ScoredBoxes(t.boxes, rng.random(len(t.labels)), t.labels) for t in truths]
    result = numbers(truths, answers, num_classes=3)
    # AR1 finds one object of a class in an image, and there may be more.
    perfect = [value for name, value in result.items() if name != "AR1" and value is not None]
    assert perfect == pytest.approx([1.0] * len(perfect))
