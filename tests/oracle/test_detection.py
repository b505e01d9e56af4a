"""Detection against MXNet's MultiBoxDetection: which boxes survive, in which order."""

import ast

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from oracle.reference import vectors

from ssd_jax.ops.detect import multibox_detection


@pytest.mark.parametrize("path", vectors("multibox_detection"))
def test_survivors(path):
    case = np.load(path)
    words = ast.literal_eval(str(case["params"]))
    anchors, overlap = case["anchors"], words["nms_threshold"]
    suppresses = 0 < overlap <= 1
    limited = suppresses and words["nms_topk"] > 0

    def survivors(box_deltas, probabilities):
        return multibox_detection(
            box_deltas.reshape(-1, 4),
            probabilities.T,
            anchors,
            score_threshold=words["threshold"],
            iou_threshold=overlap if suppresses else np.inf,
            strict=False,
            class_per_anchor="best",
            force_suppress=words["force_suppress"],
            candidates=words["nms_topk"] if limited else len(anchors),
            max_detections=len(anchors),
            clip=words["clip"],
            variances=words["variances"],
        )

    found = jax.jit(jax.vmap(survivors))(case["loc_pred"], case["cls_prob"])
    for rows, boxes, scores, labels, valid in zip(case["out"], *found, strict=True):
        rows = rows[rows[:, 0] >= 0]  # (class, score, xyxy); what is suppressed has class -1
        if not suppresses:  # the operator then ends before it sorts
            rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        assert_array_equal(labels[valid], rows[:, 0])
        assert_allclose(scores[valid], rows[:, 1], atol=1e-5)
        assert_allclose(boxes[valid], rows[:, 2:], atol=1e-5)
