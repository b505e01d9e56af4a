import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.models.layers import ConvStyle
from ssd_jax.models.vgg import VGG16

# 36 -> 18 -> 9 -> 5 (rounded up) -> 2: conv4_3 has 5 x 5, fc7 2 x 2.
IMAGES = jnp.asarray(np.random.default_rng(0).normal(0, 1, (1, 36, 36, 3)), jnp.float32)
MODEL = VGG16(ConvStyle(width=1 / 64))


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda x: MODEL.init(jax.random.key(0), x, train=False), IMAGES)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes["params"]
    )


def convolve(x, layer):
    """Every window of the zero-padded map times the kernel, then ReLU."""
    kernel = layer["kernel"]
    side = kernel.shape[0]
    pad = (side // 2, side // 2)
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
    return np.maximum(np.einsum("nyxcij,ijco->nyxo", windows, kernel) + layer["bias"], 0)


def pool(x, *, window, stride, before=0, after=0):
    """Maximum over windows, one at a time, of a map padded before and after."""
    pad = (before, after)
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)), constant_values=-np.inf)
    side = (x.shape[1] - window) // stride + 1
    rows = [
        [
            x[:, i * stride : i * stride + window, j * stride : j * stride + window].max((1, 2))
            for j in range(side)
        ]
        for i in range(side)
    ]
    return np.stack([np.stack(row, 1) for row in rows], 1)


def reference(params, x):
    """The paper's network, with the dilated kernel of fc6 written out with its zeros."""
    for block, (layers, odd) in enumerate(((2, 0), (2, 0), (3, 1), (3, 0)), start=1):
        for index in range(1, layers + 1):
            x = convolve(x, params[f"conv{block}_{index}"])
        conv4_3 = x
        x = pool(x, window=2, stride=2, after=odd)
    for index in (1, 2, 3):
        x = convolve(x, params[f"conv5_{index}"])
    x = pool(x, window=3, stride=1, before=1, after=1)
    kernel = params["fc6"]["kernel"]
    dilated = np.zeros((13, 13, *kernel.shape[2:]), np.float32)
    dilated[::6, ::6] = kernel
    x = convolve(convolve(x, {**params["fc6"], "kernel": dilated}), params["fc7"])
    length = np.sqrt(np.square(conv4_3).sum(-1, keepdims=True) + 1e-10)
    return conv4_3 / length * params["conv4_3_norm"]["scale"], x


def test_vgg16_equals_the_network_written_out(params):
    got = jax.jit(lambda p, x: MODEL.apply({"params": p}, x, train=False))(params, IMAGES)
    expected = reference(params, np.asarray(IMAGES))
    assert [x.shape for x in got] == [(1, 5, 5, 8), (1, 2, 2, 16)]
    for a, b in zip(got, expected, strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_convolutions_have_the_same_place_with_and_without_batch_norm(params):
    model = VGG16(ConvStyle(width=1 / 64, batch_norm="batch"))
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), IMAGES)
    batch_norms = {name for name in shapes["params"] if name.endswith("_bn")}
    convolutions = {name: shapes["params"][name] for name in params}
    assert set(shapes["params"]) == set(params) | batch_norms
    assert batch_norms == {f"{name}_bn" for name in params if name != "conv4_3_norm"}
    assert jax.tree.map(jnp.shape, convolutions) == jax.tree.map(jnp.shape, params)
    assert set(shapes["batch_stats"]) == batch_norms
