import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.models.layers import ConvStyle
from ssd_jax.models.resnet_v2 import PreActivationBottleneck, ResNet50V2

STYLE = ConvStyle(width=1 / 64, bias=False, batch_norm="frozen", batch_norm_epsilon=2e-5)


def shapes(model, *shape):
    """Shapes of the output and of the variables, without running anything."""
    return jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, *shape), jnp.float32),
    )


def drawn(model, *shape):
    """Random variables, variances positive."""
    rng = np.random.default_rng(0)
    _, variables = shapes(model, *shape)
    return jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32), variables)


def test_resnet50_v2_has_the_published_size():
    features, variables = shapes(ResNet50V2(), 224, 224, 3)
    assert [x.shape for x in features] == [(1, 14, 14, 1024), (1, 7, 7, 2048)]
    # timm's resnetv2_50: 25,549,352 parameters, of which the classifier has 2,049,000 and the last
    # BatchNorm 4,096; it has no BatchNorm of the image (3 biases) and none before its stem's pool
    # (128).
    expected = 25_549_352 - 2_049_000 - 4_096 + 3 + 128
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == expected


def test_the_image_is_normalised_without_a_scale():
    _, variables = shapes(ResNet50V2(STYLE), 64, 64, 3)
    assert set(variables["params"]["bn_data"]) == {"bias"}
    assert set(variables["params"]["bn0"]) == {"bias", "scale"}


def normalised(x, variables, name):
    params, stats = variables["params"][name], variables["batch_stats"][name]
    y = (x - stats["mean"]) / np.sqrt(stats["var"] + 2e-5) * params["scale"] + params["bias"]
    return np.maximum(y, 0)


@pytest.mark.parametrize("project", [False, True])
def test_a_block_equals_its_formula(project):
    """On one pixel the 3x3 convolution is its middle, so all of them are matrix products."""
    block = PreActivationBottleneck(STYLE, 64, stride=2 if project else 1, project=project)
    variables = drawn(block, 1, 1, 8)
    x = np.linspace(-2, 1, 8, dtype=np.float32)
    got = jax.jit(lambda x: block.apply(variables, x, train=False))(x[None, None, None])

    kernels = {
        name: layer["kernel"][layer["kernel"].shape[0] // 2, layer["kernel"].shape[1] // 2]
        for name, layer in variables["params"].items()
        if "kernel" in layer
    }
    activated = normalised(x, variables, "bn1")
    inner = normalised(activated @ kernels["conv1"], variables, "bn2") @ kernels["conv2"]
    residual = normalised(inner, variables, "bn3") @ kernels["conv3"]
    shortcut = activated @ kernels["shortcut"] if project else x
    np.testing.assert_allclose(got[0, 0, 0], shortcut + residual, rtol=1e-5)


def test_a_block_with_closed_convolutions_is_its_shortcut_even_where_negative():
    block = PreActivationBottleneck(STYLE, 64, stride=1, project=False)
    variables = drawn(block, 3, 3, 8)
    variables["params"]["conv3"]["kernel"] *= 0
    x = jnp.linspace(-1, 1, 72).reshape(1, 3, 3, 8)
    y = jax.jit(lambda x: block.apply(variables, x, train=False))(x)
    np.testing.assert_array_equal(y, x)


def test_first_stage_adds_finer_maps():
    features, _ = shapes(ResNet50V2(STYLE, first_stage=2), 64, 64, 3)
    assert [x.shape[1] for x in features] == [8, 4, 2]
