import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.models.layers import ConvStyle
from ssd_jax.models.resnet import Bottleneck, ResNet50

STYLE = ConvStyle(width=1 / 64, bias=False, batch_norm="frozen")


def shapes(model, *shape):
    """Shapes of the output and of the variables, without running anything."""
    return jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, *shape), jnp.float32),
    )


def ones(model, *shape):
    """All variables one, but means zero: no ReLU shuts on a positive input."""
    _, variables = shapes(model, *shape)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: np.full(x.shape, path[-1].key != "mean", np.float32), variables
    )


def test_resnet50_has_the_published_size():
    features, variables = shapes(ResNet50(), 224, 224, 3)
    assert [x.shape for x in features] == [(1, 14, 14, 1024), (1, 7, 7, 2048)]
    # torchvision's resnet50: 25,557,032 parameters, of which the classifier has 2,049,000.
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 25_557_032 - 2_049_000


def test_first_stage_adds_finer_maps():
    features, _ = shapes(ResNet50(STYLE, first_stage=2), 64, 64, 3)
    assert [x.shape[1] for x in features] == [8, 4, 2]


@pytest.mark.parametrize(("stride_first", "seen"), [(False, 36), (True, 9)])
def test_only_v15_looks_at_every_pixel_where_it_strides(stride_first, seen):
    """With the stride in the first 1x1 convolution (v1) three pixels of four are lost."""
    block = Bottleneck(STYLE, 64, stride=2, project=True, stride_first=stride_first)
    variables = ones(block, 6, 6, 8)
    variables["params"]["shortcut"]["kernel"] *= 0

    @jax.jit
    @jax.value_and_grad
    def total(x):
        y = block.apply(variables, x, train=False)
        assert y.shape == (1, 3, 3, 8)
        return y.sum()

    _, gradient = total(jnp.ones((1, 6, 6, 8)))
    assert np.count_nonzero(np.asarray(gradient)[..., 0]) == seen


def test_a_block_with_closed_convolutions_is_its_shortcut_after_relu():
    block = Bottleneck(STYLE, 64, stride=1, project=False)
    variables = ones(block, 3, 3, 8)
    variables["params"]["conv3_bn"]["scale"] *= 0
    variables["params"]["conv3_bn"]["bias"] *= 0
    x = jnp.linspace(-1, 1, 72).reshape(1, 3, 3, 8)
    np.testing.assert_array_equal(
        jax.jit(lambda x: block.apply(variables, x, train=False))(x), np.maximum(x, 0)
    )
