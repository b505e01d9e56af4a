"""What is left of a step that was not finite."""

import jax.numpy as jnp
import numpy as np

from ssd_jax.data.shapes import write_shapes
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.train.divergence import _annotated, not_finite_groups


def test_arrays_that_are_not_finite_are_counted_by_group():
    fine, broken = jnp.ones(2), jnp.array([1.0, jnp.inf])
    params = {
        "backbone": {"a": {"kernel": fine, "bias": broken}, "b": {"bias": broken * 0}},
        "heads": {"kernel": fine},
    }
    assert not_finite_groups(params) == {"backbone": 2, "heads": 0}
    assert not_finite_groups({}) == {}


def test_boxes_of_an_image_of_unknown_size_are_parts_of_its_sides(tmp_path):
    write_shapes(tmp_path, train=1, val=1, seed=0, image_size=64)
    source = open_voc(tmp_path, ("train",))
    source.annotations = source.annotations._replace(sizes=np.zeros((1, 2), int))
    (name,) = source.names
    told = _annotated(source, name)
    assert (told["width"], "boxes_xyxy_px" in told) == (None, False)
    np.testing.assert_array_equal(told["boxes_xyxy"], source.annotations.boxes)
