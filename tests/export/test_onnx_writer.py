"""What ONNX Runtime makes of our layers is what JAX makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ssd_jax.errors import UserError
from ssd_jax.export.onnx_writer import to_onnx
from ssd_jax.export.stages import network_stage
from ssd_jax.models.initialise import init_variables
from ssd_jax.models.layers import ConvStyle, L2Normalize, conv_layer
from ssd_jax.models.pooling import max_pool
from ssd_jax.network import build_network
from ssd_jax.ops.images import normalise
from ssd_jax.recipes import recipe_config

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")


def run_onnx(function, images):
    model = to_onnx(function, images.shape[1:], input_name="images", output_names=("y",))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": np.asarray(images)})[0]


def images(batch, side):
    return jnp.float32(np.random.default_rng(0).uniform(-1, 1, (batch, side, side, 3)))


def random_variables(layer, example):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), example)
    return jax.tree.map(lambda leaf: jnp.float32(rng.uniform(0.5, 1, leaf.shape)), shapes)


class Layer(nn.Module):
    words: dict

    @nn.compact
    def __call__(self, x):
        style = ConvStyle(batch_norm="frozen")
        return conv_layer(x, 8, style=style, name="conv", train=False, **self.words)


@pytest.mark.parametrize(
    "words",
    [
        {"kernel": 7, "stride": 2},
        {"dilation": 3, "relu": False},
        {"padding": 0},
    ],
    ids=str,
)
def test_convolution_with_batch_norm(words):
    layer = Layer(words)
    variables = random_variables(layer, images(2, 9))
    expected = jax.jit(layer.apply)(variables, images(2, 9))
    found = run_onnx(lambda x: layer.apply(variables, x), images(2, 9))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        {"window": 3, "stride": 2, "padding": 1},
        {"window": 2, "stride": 2, "round_up": True},
        {"window": 3, "stride": 1, "padding": 1},
    ],
    ids=str,
)
def test_max_pooling(words):
    # All below zero, so that a padding with zeros would show.
    below = images(2, 9) - 2
    found = run_onnx(lambda x: max_pool(x, **words), below)
    np.testing.assert_array_equal(found, max_pool(below, **words))


def test_grey_levels_are_normalised_before_anything_else_touches_them():
    # OpenVINO in bfloat16 rounds what it turns; of what it turns first it rounds grey levels.
    def function(x):
        return max_pool(normalise(x, (120.0, 110.0, 100.0), (58.0, 57.0, 56.0)), window=2, stride=2)

    model = to_onnx(function, (8, 8, 3), input_name="images", output_names=("y",))
    nodes = onnx.load_from_string(model).graph.node
    assert [node.op_type for node in nodes][:4] == ["Sub", "Div", "Transpose", "MaxPool"]
    np.testing.assert_allclose(run_onnx(function, images(2, 8)), function(images(2, 8)), rtol=1e-6)


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x - 1, lambda x: x * 2 + x])
def test_an_input_that_is_an_output_or_taken_twice(function):
    found = run_onnx(function, images(2, 4))
    np.testing.assert_allclose(found, function(images(2, 4)), rtol=1e-6)


def test_l2_normalisation():
    layer = L2Normalize()
    variables = random_variables(layer, images(2, 5))
    found = run_onnx(lambda x: layer.apply(variables, x), images(2, 5))
    np.testing.assert_allclose(found, layer.apply(variables, images(2, 5)), rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.nn.softmax(jnp.concatenate([x, 2 * x], axis=-1).reshape(x.shape[0], -1, 6)),
        lambda x: 1 - (5 - x) / jnp.array([1.0, 2.0, 4.0]),
        lambda x: jnp.concatenate([x, x + 1], axis=1),
        lambda x: jax.nn.sigmoid(x[:, :3, 1:])[:, :, ::-1],
    ],
    ids=["softmax", "constants", "concatenation of maps", "mirrored part"],
)
def test_other_operations(function):
    found = run_onnx(function, images(3, 4))
    np.testing.assert_allclose(found, function(images(3, 4)), rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "primitive"),
    [(jnp.sin, "sin"), (lambda x: x.sum(axis=1), "reduce_sum in a way")],
)
def test_what_cannot_be_written_is_said(function, primitive):
    with pytest.raises(UserError, match=f"the network uses {primitive}"):
        to_onnx(function, (4, 4, 3), input_name="images", output_names=("y",))


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "backbone", "changes"),
    [
        ("paper", "small", {}),
        ("paper", "vgg16", {}),
        ("paper", "resnet50", {"model.batch_norm": "frozen"}),
        ("paper", "resnet50_v1", {"model.batch_norm": "frozen"}),
        ("sagemaker", "vgg16", {}),
        ("sagemaker", "resnet50_v2", {}),
        ("paper", "small", {"model.fpn_channels": 64, "model.class_activation": "sigmoid"}),
        ("paper", "small", {"detect.flip": True}),
    ],
    ids=str,
)
def test_every_network(recipe, backbone, changes):
    config = recipe_config(recipe, backbone)
    config.model.update({"image_size": 300, "width": 0.1})
    config.update_from_flattened_dict(changes)
    network = build_network(config, 20)
    run = network_stage(config, network.model)
    variables = init_variables(network.model, 300, seed=0)
    pictures = 100 * images(2, 300)
    expected = jax.jit(run)(variables, pictures)
    model = to_onnx(
        lambda x: run(variables, x),
        (300, 300, 3),
        input_name="images",
        output_names=("box_deltas", "probabilities"),
    )
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": np.asarray(pictures)})
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-3 * np.abs(ours).max())
