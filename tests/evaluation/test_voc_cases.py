"""The metric on published and hand-derived cases; SSD_JAX_EVAL_CASES names their folder."""

import json
import os
import pathlib

import numpy as np
import pytest

from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes, evaluate_voc


@pytest.fixture(scope="module")
def cases(request):
    """The VOC cases of the folder SSD_JAX_EVAL_CASES, else of SSD_JAX_SHARED/eval_cases."""
    named = os.environ.get("SSD_JAX_EVAL_CASES")
    folder = pathlib.Path(named) if named else request.getfixturevalue("shared") / "eval_cases"
    every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [case for case in every if case["kind"] == "voc"]


def xyxy(box, box_format):
    if box_format.startswith("xyxy"):
        return box
    assert box_format.startswith("xywh"), f"unknown box format {box_format}"
    x, y, width, height = box
    return [x, y, x + width, y + height]


def as_arrays(case):
    """(ground truths, detections, labels by class id); labels are told apart by their JSON key."""
    images, form = case["images"], case.get("box_format", "xyxy")
    objects = [each for image in images for each in (*image["gts"], *image["dets"])]
    names = {str(each["label"]): None for each in objects}
    names |= {label: None for entry in case["expected"] for label in entry["per_class"]}
    ids = {name: i for i, name in enumerate(names)}
    truths, detections = [], []
    for image in images:
        objects, answers = (
            (
                np.array([xyxy(each["box"], form) for each in image[kind]], float).reshape(-1, 4),
                np.array([ids[str(each["label"])] for each in image[kind]], int),
            )
            for kind in ("gts", "dets")
        )
        difficult = [bool(each.get("difficult", False)) for each in image["gts"]]
        scores = [each["score"] for each in image["dets"]]
        truths.append(GroundTruth(*objects, np.array(difficult, bool)))
        detections.append(ScoredBoxes(answers[0], np.array(scores, float), answers[1]))
    return truths, detections, list(names)


def disagreements(case):
    truths, detections, names = as_arrays(case)
    for entry in case["expected"]:
        setting = {
            "iou_threshold": float(entry["iou"]),
            "plus_one": bool(entry.get("plus_one", True)),
            "iou_rule": entry.get("iou_rule", ">="),
        }
        result = evaluate_voc(truths, detections, num_classes=len(names), **setting)
        per_class = dict(zip(names, result.per_class, strict=True))
        means = [name for name in ("map11", "map") if name in entry]
        pairs = {name: (getattr(result, name), entry[name]) for name in means}
        for label, expected in entry["per_class"].items():
            for name, value in expected.items():
                pairs[f"{label}.{name}"] = (getattr(per_class[label], name), value)
        for name, (got, expected) in pairs.items():
            undefined = None in (got, expected)
            same = got is expected if undefined else abs(got - expected) <= case["tolerance"]
            if not same:
                yield f"{case['name']} {setting} {name}: got {got}, expected {expected}"


def test_agrees_with_every_case(cases):
    assert cases, "no VOC case in the folder"
    assert not [line for case in cases for line in disagreements(case)]
