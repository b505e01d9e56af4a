"""The published and hand-derived cases that the metrics are checked on, and how they are read."""

import json
import os
import pathlib

import numpy as np

from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes


def load_cases(request, kind):
    """Those of a kind in the folder SSD_JAX_EVAL_CASES, else in SSD_JAX_SHARED/eval_cases."""
    named = os.environ.get("SSD_JAX_EVAL_CASES")
    folder = pathlib.Path(named) if named else request.getfixturevalue("shared") / "eval_cases"
    every = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [case for case in every if case["kind"] == kind]


def xyxy(box, box_format):
    if box_format.startswith("xyxy"):
        return box
    assert box_format.startswith("xywh"), f"unknown box format {box_format}"
    x, y, width, height = box
    return [x, y, x + width, y + height]


def as_arrays(case, names):
    """(ground truths, detections); labels are told apart by their JSON key, `names` in order."""
    form = case.get("box_format", "xyxy")
    ids = {name: i for i, name in enumerate(names)}
    truths, detections = [], []
    for image in case["images"]:
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
    return truths, detections


def labels_in(case):
    """All labels of objects and detections, in the order of the file."""
    things = [each for image in case["images"] for kind in ("gts", "dets") for each in image[kind]]
    return list(dict.fromkeys(str(each["label"]) for each in things))
