import functools

import jax
import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.models.ssd import build_model, feature_shapes
from ssd_jax.weights.layouts import LAYOUTS, find_layout
from ssd_jax.weights.maps_gluoncv import RESNET50_GLUON, RESNET50_GLUONCV, VGG16_GLUONCV
from ssd_jax.weights.maps_resnet import RESNET50_KERAS, RESNET50_TORCHVISION, RESNET50_V2_TIMM
from ssd_jax.weights.maps_vgg import (
    VGG16_CAFFE_NAMES,
    VGG16_KERAS,
    VGG16_REDUCED_TORCH,
    VGG16_TORCHVISION,
)


@functools.cache
def paths(**network):
    """Paths of the thinnest network of that kind."""
    network = {"image_size": 64, **network}
    model = build_model(
        **network,
        num_classes=1,
        anchors_per_cell=(1,) * len(feature_shapes(**network)),
        width=1 / 64,
        batch_norm="none" if network["backbone"] == "vgg16" else "frozen",
    )
    leaves = jax.tree_util.tree_leaves_with_path(variable_shapes(model, network["image_size"]))
    return {"/".join(entry.key for entry in path) for path, _ in leaves}


@pytest.mark.parametrize(
    ("layout", "network"),
    [
        (VGG16_CAFFE_NAMES, {"backbone": "vgg16"}),
        (VGG16_TORCHVISION, {"backbone": "vgg16"}),
        (VGG16_REDUCED_TORCH, {"backbone": "vgg16"}),
        (VGG16_KERAS, {"backbone": "vgg16"}),
        (VGG16_GLUONCV, {"backbone": "vgg16", "image_size": 512}),
        (RESNET50_GLUONCV, {"backbone": "resnet50_v1", "image_size": 512}),
        (RESNET50_GLUON, {"backbone": "resnet50_v1"}),
        (RESNET50_TORCHVISION, {"backbone": "resnet50"}),
        (RESNET50_KERAS, {"backbone": "resnet50_v1"}),
        (RESNET50_V2_TIMM, {"backbone": "resnet50_v2", "extras": "mxnet"}),
    ],
    ids=lambda value: value["backbone"] if isinstance(value, dict) else value.name,
)
def test_a_layout_fills_the_whole_backbone_of_its_network_but_what_it_names(layout, network):
    filled = {target.path for target in layout.targets.values()}
    ours = paths(**network)
    assert filled <= ours
    backbone = {path for path in ours if "/backbone/" in path}
    unfilled = {path.split("/")[2] for path in backbone - filled}
    assert unfilled <= {"conv4_3_norm", "bn_data", "bn0"}
    if layout in (VGG16_GLUONCV, RESNET50_GLUONCV):
        assert filled == ours
    assert layout.backbones == (network["backbone"],)
    assert set(layout.biases.values()) <= ours


@pytest.mark.parametrize(
    ("index", "conv"), [(0, "conv1_1"), (7, "conv2_2"), (10, "conv3_1"), (28, "conv5_3")]
)
def test_torchvision_counts_relus_and_pools_too(index, conv):
    assert (
        VGG16_TORCHVISION.targets[f"features.{index}.bias"].path == f"params/backbone/{conv}/bias"
    )


def test_a_torch_kernel_turns_from_oihw_to_hwio():
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    turned = VGG16_TORCHVISION.targets["features.0.weight"].transform(kernel)
    assert turned.shape == (4, 5, 3, 2)
    assert turned[3, 4, 2, 1] == kernel[1, 2, 3, 4]


def test_a_keras_first_kernel_turns_from_bgr_to_rgb():
    kernel = np.arange(3 * 3 * 3 * 2).reshape(3, 3, 3, 2)
    for layout, name in ((VGG16_KERAS, "block1_conv1"), (RESNET50_KERAS, "conv1_conv")):
        turned = layout.targets[f"{name}/kernel"].transform(kernel)
        np.testing.assert_array_equal(turned[:, :, 0], kernel[:, :, 2])
    other = VGG16_KERAS.targets["block1_conv2/kernel"].transform(kernel)
    np.testing.assert_array_equal(other, kernel)


def test_dense_layers_become_convolutions_the_same_from_every_layout():
    """Unit 4u is kept, at pixels 0, 3 and 6 of 7: ParseNet's reduction."""
    units, channels = 8, 2
    fc6 = np.arange(units * channels * 49.0).reshape(units, channels, 7, 7)  # unit, channel, y, x
    fc7 = np.arange(units * units * 1.0).reshape(units, units)  # out, in
    bias = np.arange(units * 1.0)
    torch, keras = VGG16_TORCHVISION.targets, VGG16_KERAS.targets
    sixth = [
        torch["classifier.0.weight"].transform(fc6.reshape(units, -1)),
        torch["pre_logits.fc1.weight"].transform(fc6),
        keras["fc1/kernel"].transform(fc6.transpose(2, 3, 1, 0).reshape(-1, units)),
    ]
    seventh = [
        torch["classifier.3.weight"].transform(fc7),
        torch["pre_logits.fc2.weight"].transform(fc7[:, :, None, None]),
        keras["fc2/kernel"].transform(fc7.T),
    ]
    for kernel in sixth:
        assert kernel.shape == (3, 3, channels, units // 4)
        assert kernel[1, 2, 1, 1] == fc6[4, 1, 3, 6]
        np.testing.assert_array_equal(kernel, sixth[0])
    for kernel in seventh:
        assert kernel.shape == (1, 1, units // 4, units // 4)
        assert kernel[0, 0, 0, 1] == fc7[4, 0]
        np.testing.assert_array_equal(kernel, seventh[0])
    np.testing.assert_array_equal(torch["classifier.0.bias"].transform(bias), [0, 4])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_layout_is_told_from_the_names(layout):
    assert find_layout([*layout.targets, "something else"]) is layout


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"names layer1\.weight, .*vgg16 of torchvision"):
        find_layout(["layer1.weight"])
