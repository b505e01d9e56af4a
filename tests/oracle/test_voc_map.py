"""The metric against mxnet-ssd's, GluonCV's and a devkit's on the same detections."""

import numpy as np
import pytest
from oracle.reference import vectors

from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes, evaluate_voc

# GluonCV was given boxes in pixels of a 512 px image, the others normalised ones.
MXNET_SSD = {"plus_one": False, "iou_rule": ">", "counting": "mxnet-ssd"}
GLUONCV = {"plus_one": True, "pixels": 512}
DEVKIT = {"plus_one": False}
PROTOCOLS = {
    "mxnetssd_voc07": ("11", MXNET_SSD),
    "mxnetssd_integral": ("", MXNET_SSD),
    "mxnetssd_voc07_usediff": ("11", {**MXNET_SSD, "difficult": "counted"}),
    "gluoncv_voc07": ("11", GLUONCV),
    "gluoncv_integral": ("", GLUONCV),
    "gluoncv_voc07_nodiff": ("11", {**GLUONCV, "difficult": "counted"}),
    "gluoncv_voc07_iou07": ("11", {**GLUONCV, "iou_threshold": 0.7}),
    # example/ssd of MXNet 1.3 looks at images with objects only; the rest is mxnet-ssd's.
    "apache130_voc07": ("11", {**MXNET_SSD, "with_objects_only": True}),
    "devkit_voc07": ("11", DEVKIT),
    "devkit_integral": ("", DEVKIT),
}


def records(vector, pixels):
    """Rows are (class, xyxy, difficult) and (class, score, xyxy), padded by class -1."""
    truths, detections = [], []
    for rows, columns in zip(vector["labels"], vector["dets"], strict=True):
        rows, columns = rows[rows[:, 0] >= 0], columns[columns[:, 0] >= 0]
        truths.append(GroundTruth(rows[:, 1:5] * pixels, rows[:, 0].astype(int), rows[:, 5] > 0))
        classes = columns[:, 0].astype(int)
        detections.append(ScoredBoxes(columns[:, 2:] * pixels, columns[:, 1], classes))
    return truths, detections


def average_precision(hits, npos, eleven_points):
    precision, recall = np.cumsum(hits) / np.arange(1, len(hits) + 1), np.cumsum(hits) / npos
    best = [precision[place:].max() for place in range(len(hits))]
    if eleven_points:
        reached = [np.flatnonzero(recall >= r) for r in np.arange(0, 1.1, 0.1)]
        return sum(best[places[0]] if len(places) else 0.0 for places in reached) / 11
    return np.diff(recall, prepend=0.0) @ best if best else 0.0


def spread(of_class, eleven_points):
    """By how much the order of equal scores can change the average: each reference has its own."""
    if not of_class.npos:
        return 0.0
    hits = np.diff(np.round(of_class.recall * of_class.npos), prepend=0)
    least, largest = (
        average_precision(hits[np.lexsort((order, -of_class.scores))], of_class.npos, eleven_points)
        for order in (hits, -hits)
    )
    return largest - least


@pytest.mark.parametrize("path", vectors("voc_map"))
def test_agrees_with_every_protocol(path):
    with np.load(path) as vector:
        keys = set(vector.files) - {"labels", "dets", "num_classes"}
        assert keys
        assert keys <= set(PROTOCOLS)
        for key in sorted(keys):
            suffix, options = PROTOCOLS[key]
            options = dict(options)
            truths, detections = records(vector, options.pop("pixels", 1))
            if options.pop("with_objects_only", False):
                shown = [i for i, truth in enumerate(truths) if len(truth.labels)]
                truths, detections = ([every[i] for i in shown] for every in (truths, detections))
            num_classes = int(vector["num_classes"])
            result = evaluate_voc(truths, detections, num_classes=num_classes, **options)
            values = [getattr(each, f"ap{suffix}") for each in result.per_class]
            values = np.array([*values, getattr(result, f"map{suffix}")], np.float64)
            slack = [spread(each, suffix == "11") for each in result.per_class]
            slack = np.array([*slack, max(slack)]) + 1e-9
            np.testing.assert_array_equal(np.isnan(values), np.isnan(vector[key]), err_msg=key)
            assert not (np.abs(values - vector[key]) > slack).any(), key
