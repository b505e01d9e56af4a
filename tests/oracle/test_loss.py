"""Loss and gradient against MXNet's SoftmaxOutput and MakeLoss, both normalised by "valid"."""

import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracle.label_rows import objects
from oracle.reference import vectors

from ssd_jax.train.step import batch_loss
from ssd_jax.types import Batch


@pytest.mark.parametrize("path", vectors("loss"))
def test_loss_and_gradient(path):
    case = np.load(path)
    boxes, labels, valid = objects(case["labels"])
    batch = Batch(*[None] * len(Batch._fields))._replace(boxes=boxes, labels=labels, valid=valid)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_gradient(predictions):
        return batch_loss(
            predictions[1],
            predictions[0],
            batch,
            case["anchors"],
            strict=True,
            empty_is_negative=False,
            minimum_negatives=0,
            normalization="valid",
        )

    logits = case["cls_preds"].transpose(0, 2, 1)
    deltas = case["loc_preds"].reshape(*logits.shape[:2], 4)
    (_, metrics), gradients = loss_and_gradient((logits, deltas))
    assert_allclose(gradients[0].transpose(0, 2, 1), case["grad_cls_preds"], atol=1e-6)
    assert_allclose(gradients[1].reshape(len(deltas), -1), case["grad_loc_preds"], atol=1e-6)

    classified = case["cls_target"] >= 0
    class_ids = np.where(classified, case["cls_target"], 0).astype(int)
    probability = np.take_along_axis(case["cls_prob"], class_ids[:, None], axis=1)[:, 0]
    probability = probability[classified].astype(np.float64)
    class_loss = -np.log(probability).sum() / max(classified.sum(), 1)
    box_loss = case["loc_loss"].sum() / max(case["n_loc_nonzero"], 1)
    assert_allclose(metrics["class_loss"], class_loss, rtol=1e-5)
    assert_allclose(metrics["box_loss"], box_loss, rtol=1e-5)
    if classified.any():  # the reference reports both divided alike, and adds 1e-8 in the logarithm
        cross_entropy = metrics["class_loss"] - np.log1p(1e-8 / probability).mean()
        smooth_l1 = metrics["box_loss"] * case["n_loc_nonzero"] / case["n_valid"]
        assert_allclose([cross_entropy, smooth_l1], case["metric_ce_l1"], rtol=1e-5)
