import jax
import numpy as np
import pytest
from flax import linen as nn

from ssd_jax.models.extras import ExtraLayers
from ssd_jax.models.initialise import (
    _he_normal,
    init_variables,
    scale_kernels,
    unit_output_factors,
    variable_shapes,
)
from ssd_jax.models.layers import ConvStyle, conv_layer
from ssd_jax.models.ssd import SSD, Heads, build_model


@pytest.fixture(scope="module")
def model():
    return build_model(
        backbone="vgg16",
        num_classes=3,
        image_size=64,
        anchors_per_cell=(4, 6, 6, 4),
        width=1 / 4,
        batch_norm="batch",
    )


@pytest.fixture(scope="module")
def variables(model):
    return init_variables(model, 64, seed=7)


def test_the_tree_is_that_of_linen_in_float32(model, variables):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    linen = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    assert shapes == linen == variable_shapes(model, 64)
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(variables))


def test_values_follow_the_rule_of_their_kind(variables):
    params, stats = variables["params"], variables["batch_stats"]
    assert np.all(params["backbone"]["conv4_3_norm"]["scale"] == 20)
    assert np.all(params["backbone"]["conv4_3_bn"]["scale"] == 1)
    assert np.all(params["heads"]["class_0"]["bias"] == 0)
    assert np.all(stats["backbone"]["fc7_bn"]["mean"] == 0)
    assert np.all(stats["backbone"]["fc7_bn"]["var"] == 1)
    he = params["backbone"]["conv5_1"]["kernel"]  # 3 x 3 x 128 inputs
    assert he.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    assert np.abs(he).max() > 3 * he.std()
    xavier = params["extras"]["conv6_2"]["kernel"]  # 3 x 3, 64 -> 128
    limit = np.sqrt(6 / (9 * (64 + 128)))
    assert np.abs(xavier).max() == pytest.approx(limit, rel=0.01)
    assert xavier.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)


def test_values_depend_on_seed_and_path_only(model, variables):
    again, other = (init_variables(model, 64, seed=seed) for seed in (7, 8))
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    kernels = variables["params"]["backbone"]
    assert np.any(other["params"]["backbone"]["conv5_1"]["kernel"] != kernels["conv5_1"]["kernel"])
    assert np.any(kernels["conv5_1"]["kernel"] != kernels["conv5_2"]["kernel"])
    # Three more classes change the class heads and nothing else.
    wider = init_variables(model.clone(heads=model.heads.clone(num_classes=6)), 64, seed=7)
    jax.tree.map(np.testing.assert_array_equal, wider["params"]["backbone"], kernels)
    np.testing.assert_array_equal(
        wider["params"]["heads"]["box_0"]["kernel"], variables["params"]["heads"]["box_0"]["kernel"]
    )


def test_a_network_without_batch_norm_has_empty_statistics():
    model = build_model(
        backbone="vgg16", num_classes=1, image_size=64, anchors_per_cell=(4,) * 4, width=1 / 64
    )
    assert init_variables(model, 64, seed=0)["batch_stats"] == {}


class Own(nn.Module):
    """A base of somebody else, with a layer that has a name of ResNet's."""

    @nn.compact
    def __call__(self, images, *, train):
        style = ConvStyle(batch_norm="batch")
        x = conv_layer(images, 8, style=style, name="conv3", train=train, stride=32)
        ones = nn.initializers.ones
        y = nn.Conv(4, (2, 2), kernel_init=nn.initializers.zeros, bias_init=ones, name="own")(x)
        return x, nn.PReLU()(y)


def test_a_module_of_ones_own_keeps_its_initialisers():
    model = SSD(Own(), ExtraLayers(()), Heads((4, 4), 2))
    first, again, other = (init_variables(model, 64, seed=seed)["params"] for seed in (7, 7, 8))
    base = first["backbone"]
    assert np.all(base["own"]["kernel"] == 0)
    assert np.all(base["own"]["bias"] == 1)
    assert base["PReLU_0"]["negative_slope"] == np.float32(0.01)
    assert np.all(base["conv3_bn"]["scale"] == 1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(other["backbone"]["conv3"]["kernel"] != base["conv3"]["kernel"])


def test_a_residual_block_begins_as_its_shortcut():
    words = {"image_size": 64, "anchors_per_cell": (4,) * 3, "width": 1 / 16}
    model = build_model(backbone="resnet50", num_classes=1, batch_norm="batch", **words)
    block = init_variables(model, 64, seed=0)["params"]["backbone"]["stage2_block1"]
    assert np.all(block["conv3_bn"]["scale"] == 0)
    assert np.all(block["conv2_bn"]["scale"] == 1)


def test_sigmoid_class_heads_begin_at_a_score_of_a_hundredth():
    words = {"image_size": 64, "anchors_per_cell": (4,) * 4, "width": 1 / 64}
    model = build_model(backbone="vgg16", num_classes=1, class_activation="sigmoid", **words)
    for name, layer in init_variables(model, 64, seed=0)["params"]["heads"].items():
        score = 1 / (1 + np.exp(-layer["bias"]))
        np.testing.assert_allclose(score, 0.01 if name.startswith("class") else 0.5, rtol=1e-5)


def test_new_layers_are_scaled_to_what_loud_layers_below_them_answer():
    model = build_model(
        backbone="vgg16", num_classes=3, image_size=64, anchors_per_cell=(4, 6, 6, 4), width=1 / 16
    )
    variables = init_variables(model, 64, seed=0)
    loud = variables["params"]["backbone"]["conv5_3"]
    loud["kernel"] = loud["kernel"] * 1000
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)

    factors = unit_output_factors(model, variables, ("fc6", "fc7"), images)
    scaled = scale_kernels(variables, factors)

    def rms(variables, layer):
        _, state = model.apply(
            variables,
            jax.numpy.asarray(images),
            train=False,
            capture_intermediates=True,
            mutable=["intermediates"],
        )
        (answer,) = state["intermediates"]["backbone"][layer]["__call__"]
        return float(np.sqrt(np.mean(answer**2)))

    assert rms(variables, "fc6") > 100
    assert all(0.7 < rms(scaled, layer) < 1.5 for layer in ("fc6", "fc7"))
    # By powers of two, and nothing else has changed.
    assert all(np.log2(factor).is_integer() for factor in factors.values())
    for layer, factor in factors.items():
        scaled["params"]["backbone"][layer]["kernel"] /= np.float32(factor)
    jax.tree.map(np.testing.assert_array_equal, scaled, variables)


def test_a_layer_that_answers_nothing_is_left_as_it_is():
    words = {"image_size": 64, "anchors_per_cell": (4,) * 4, "width": 1 / 64}
    model = build_model(backbone="vgg16", num_classes=1, **words)
    variables = init_variables(model, 64, seed=0)
    variables["params"]["backbone"]["fc6"]["kernel"] *= 0
    images = np.ones((1, 64, 64, 3), np.float32)
    assert unit_output_factors(model, variables, ("fc6",), images) == {"fc6": 1.0}


def test_a_kernel_of_several_scanned_layers_begins_like_each_of_them():
    rng = np.random.default_rng(0)
    single, several = (
        float(_he_normal(rng, shape).std()) for shape in ((3, 3, 64, 64), (5, 3, 3, 64, 64))
    )
    assert several == pytest.approx(single, rel=0.02)
