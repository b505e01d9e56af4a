import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.weights.maps import VGG16_CAFFE_NAMES, VGG16_TORCHVISION, find_map


def test_both_layouts_fill_the_same_thirteen_convolutions():
    caffe, torchvision = (
        {target.path for target in name_map.targets.values()}
        for name_map in (VGG16_CAFFE_NAMES, VGG16_TORCHVISION)
    )
    assert caffe == torchvision
    assert len(caffe) == 26


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


def test_the_layout_is_told_from_the_names():
    assert find_map(["conv5_3/kernel"]) is VGG16_CAFFE_NAMES
    assert find_map(["classifier.0.weight", "features.0.weight"]) is VGG16_TORCHVISION
    with pytest.raises(UserError, match=r"names layer1\.weight, .*vgg16 of torchvision"):
        find_map(["layer1.weight"])
