"""The feature pyramid: sizes stay, and what is coarse reaches what is fine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.models.fpn import FeaturePyramid, enlarge
from ssd_jax.models.layers import ConvStyle
from ssd_jax.models.ssd import build_model

SIDES = (5, 3, 1)  # as the last maps of SSD300


@pytest.mark.parametrize(("side", "size"), [(2, (4, 4)), (3, (5, 5)), (1, (3, 3)), (2, (2, 2))])
def test_enlarging_takes_nearest_pixels(side, size):
    x = jnp.arange(2.0 * side * side * 3).reshape(2, side, side, 3)
    index = np.arange(size[0]) // -(-size[0] // side)
    np.testing.assert_array_equal(enlarge(x, size), x[:, index][:, :, index])


def test_only_finer_maps_see_a_map():
    pyramid = FeaturePyramid(ConvStyle(), channels=8)
    maps = tuple(jnp.ones((1, side, side, 4 * level)) for level, side in enumerate(SIDES, start=1))
    variables = jax.jit(pyramid.init, static_argnames="train")(jax.random.key(0), maps, train=False)
    apply = jax.jit(lambda maps: pyramid.apply(variables, maps, train=False))
    assert set(variables["params"]) == {f"{kind}_{i}" for kind in ("lateral", "output")
                                        for i in range(3)}  # fmt: skip
    before = apply(maps)
    assert [x.shape for x in before] == [(1, side, side, 8) for side in SIDES]
    for level in range(3):
        other = tuple(x + 1 if i == level else x for i, x in enumerate(maps))
        after = apply(other)
        moved = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
        assert moved == [i <= level for i in range(3)]


def test_the_network_fuses_its_maps_ahead_of_the_heads():
    words = {"backbone": "vgg16", "image_size": 64, "num_classes": 3, "width": 1 / 64,
             "anchors_per_cell": (4, 6, 6, 4)}  # fmt: skip
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for channels, wide in ((0, 8), (2048, 32)):
        model = build_model(**words, fpn_channels=channels)
        shapes = jax.eval_shape(lambda x, m=model: m.init(jax.random.key(0), x, train=False), image)
        assert ("fpn" in shapes["params"]) == (channels > 0)
        # The last extra layer of VGG16 is as wide as its first at this width.
        assert shapes["params"]["heads"]["box_0"]["kernel"].shape == (3, 3, wide, 16)
