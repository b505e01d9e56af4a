"""The small backbone: strides 8 and 16, then halves down to a single cell."""

import jax
import numpy as np
import pytest

from ssd_jax.models.initialise import init_variables
from ssd_jax.models.ssd import build_model, feature_shapes


@pytest.mark.parametrize(
    ("image_size", "sides"), [(128, (16, 8, 4, 2, 1)), (96, (12, 6, 3, 2, 1)), (64, (8, 4, 2, 1))]
)
def test_maps_halve_down_to_one_cell(image_size, sides):
    shapes = feature_shapes(backbone="small", image_size=image_size)
    assert shapes == tuple((side, side) for side in sides)


def test_outputs_have_a_row_for_each_anchor():
    model = build_model(
        backbone="small",
        num_classes=3,
        image_size=64,
        anchors_per_cell=(4, 6, 4, 4),
        width=0.1,
        batch_norm="batch",
    )
    variables = init_variables(model, 64, seed=0)
    images = np.zeros((2, 64, 64, 3), np.float32)
    boxes, logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    anchors = 4 * 64 + 6 * 16 + 4 * 4 + 4
    assert (boxes.shape, logits.shape) == ((2, anchors, 4), (2, anchors, 4))


def test_a_residual_block_begins_as_its_shortcut():
    model = build_model(
        backbone="resnet50",
        num_classes=3,
        image_size=64,
        anchors_per_cell=(4, 4, 4),
        width=0.02,
        batch_norm="batch",
    )
    block = init_variables(model, 64, seed=0)["params"]["backbone"]["stage3_block2"]
    assert not block["conv3_bn"]["scale"].any()
    assert block["conv2_bn"]["scale"].all()
