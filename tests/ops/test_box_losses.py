"""Losses by overlap: equal boxes cost nothing, and distance costs more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ssd_jax.errors import UserError
from ssd_jax.ops.box_losses import BOX_LOSSES, overlap_loss
from ssd_jax.ops.boxes import iou

coordinate = st.floats(0, 1, width=32)
box = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
UNIT = jnp.array([0.0, 0.0, 1.0, 1.0])


def array(*boxes):
    return jnp.array(boxes, jnp.float32)


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_equal_boxes_cost_nothing(kind):
    boxes = array((0.1, 0.2, 0.4, 0.9), (0, 0, 1, 1))
    np.testing.assert_allclose(overlap_loss(boxes, boxes, kind=kind), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        # Two unit squares, the second one shifted by 2 to the right: around them a box of 3 x 1.
        ("giou", 1 + 1 / 3),
        ("diou", 1 + 4 / 10),
        ("ciou", 1 + 4 / 10),
    ],
)
def test_apart(kind, loss):
    shifted = UNIT + jnp.array([2.0, 0, 2, 0])
    assert float(overlap_loss(UNIT, shifted, kind=kind)) == pytest.approx(loss)


def test_the_aspect_ratio_costs_with_ciou_only():
    wide, tall = array((-1.0, -0.5, 1, 0.5), (-0.5, -1.0, 0.5, 1))  # same centre, IoU 1/3
    assert float(overlap_loss(wide, tall, kind="diou")) == pytest.approx(2 / 3)
    aspect = 4 / np.pi**2 * (np.arctan(2) - np.arctan(0.5)) ** 2
    expected = 2 / 3 + aspect**2 / (2 / 3 + aspect)
    assert float(overlap_loss(wide, tall, kind="ciou")) == pytest.approx(expected, rel=1e-5)


def test_the_weight_of_the_aspect_ratio_is_not_learned_through():
    target = array((0.2, 0.1, 0.8, 0.5))[0]
    box = array((0.1, 0.2, 0.5, 0.9))[0]

    def aspect(box):
        angle = lambda b: jnp.arctan2(b[2] - b[0], b[3] - b[1])  # noqa: E731
        return 4 / np.pi**2 * (angle(target) - angle(box)) ** 2

    def gradient(kind):
        return jax.grad(lambda box: overlap_loss(box, target, kind=kind))(box)

    weight = aspect(box) / (1 - iou(box, target) + aspect(box))
    expected = gradient("diou") + weight * jax.grad(aspect)(box)
    np.testing.assert_allclose(gradient("ciou"), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_a_step_down_the_gradient_brings_separate_boxes_together(kind):
    loss = lambda x: overlap_loss(UNIT + jnp.array([x, 0, x, 0]), UNIT, kind=kind)  # noqa: E731
    assert jax.grad(loss)(2.0) > 0


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_boxes_without_area_have_a_finite_loss_and_gradient(kind):
    point = jnp.array([0.5, 0.5, 0.5, 0.5])
    for a, b in ((point, point), (point, UNIT), (UNIT, point)):
        value, gradient = jax.value_and_grad(lambda x, b=b: overlap_loss(x, b, kind=kind))(a)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_an_unknown_loss_is_refused():
    with pytest.raises(UserError, match="got 'iou', expected one of giou, diou, ciou"):
        overlap_loss(UNIT, UNIT, kind="iou")
