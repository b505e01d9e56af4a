"""Matching and mining against MXNet's MultiBoxTarget: every decision, and the offsets."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from oracle.label_rows import objects
from oracle.reference import vectors

from ssd_jax.ops.losses import mine_hard_negatives
from ssd_jax.ops.matching import match


@pytest.mark.parametrize("path", vectors("multibox_target"))
def test_targets(path):
    case = np.load(path)
    words = ast.literal_eval(str(case["params"]))
    ratio = words["negative_mining_ratio"]

    def targets_of(class_logits, boxes, labels, valid):
        targets = match(
            case["anchors"],
            boxes,
            labels,
            valid,
            iou_threshold=words["overlap_threshold"],
            # Without mining, MXNet takes what overlaps an object as background too.
            negative_iou_threshold=words["negative_mining_thresh"] if ratio > 0 else np.inf,
            strict=True,
            empty_is_negative=False,
            variances=words["variances"],
        )
        hard = mine_hard_negatives(
            jax.nn.softmax(class_logits.T)[:, 0],
            targets.positive,
            targets.negative,
            negatives_per_positive=ratio,
            minimum=0,  # MXNet's CPU operator reads minimum_negative_samples and ignores it
        )
        asked = targets.positive | hard
        return targets, jnp.where(asked, targets.class_ids, words["ignore_label"])

    targets, class_ids = jax.jit(jax.vmap(targets_of))(case["cls_preds"], *objects(case["labels"]))
    batch = len(class_ids)
    assert_array_equal(class_ids, case["cls_target"])
    assert_array_equal(targets.positive.repeat(4, axis=1), case["loc_mask"] > 0)
    assert_allclose(targets.box_deltas.reshape(batch, -1), case["loc_target"], atol=1e-5)
