"""VGG16 in weight files: the thirteen convolutions, and fc6 and fc7 if the file has them.

As in ParseNet (arXiv:1506.04579) and SSD, fc6 and fc7 become convolutions: every fourth of their
4096 units is kept, and every third of fc6's 7x7 pixels in each direction.
"""

import numpy as np

from ssd_jax.weights.maps import (
    CAFFE_INPUT,
    TORCHVISION_INPUT,
    NameMap,
    Target,
    oihw_to_hwio,
    unchanged,
)

VGG16_CONVOLUTIONS = tuple(
    f"conv{block}_{index}"
    for block, convolutions in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
    for index in range(1, convolutions + 1)
)
# Their positions in torchvision's `vgg16().features`, between ReLUs and pools.
TORCHVISION_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_UNITS, _PIXELS = 4, 3  # one out of so many is kept
# A classification network lacks the layers that SSD adds; a file may also lack its dense layers.
_NEW_IN_SSD = (
    "params/backbone/conv4_3_norm/*",
    "params/backbone/fc6*",
    "params/backbone/fc7*",
    "params/extras/*",
    "*/fpn/*",
    "params/heads/*",
    "*_bn/*",
)


def fc6_of_dense(kernel: np.ndarray) -> np.ndarray:
    """Turn PyTorch's [4096, 512 * 7 * 7] into [3, 3, 512, 1024]."""
    return fc6_of_conv(kernel.reshape(len(kernel), -1, 7, 7))


def fc6_of_conv(kernel: np.ndarray) -> np.ndarray:
    """Turn [4096, 512, 7, 7] into [3, 3, 512, 1024]."""
    return oihw_to_hwio(kernel[::_UNITS, :, ::_PIXELS, ::_PIXELS])


def fc6_of_keras(kernel: np.ndarray) -> np.ndarray:
    """Turn Keras' [7 * 7 * 512, 4096], whose channels vary fastest, into [3, 3, 512, 1024]."""
    return kernel.reshape(7, 7, -1, kernel.shape[1])[::_PIXELS, ::_PIXELS, :, ::_UNITS]


def fc7_of_dense(kernel: np.ndarray) -> np.ndarray:
    """Turn [4096 out, 4096 in], or the same with [1, 1] appended, into [1, 1, 1024, 1024]."""
    return oihw_to_hwio(kernel.reshape(*kernel.shape[:2], 1, 1)[::_UNITS, ::_UNITS])


def fc7_of_keras(kernel: np.ndarray) -> np.ndarray:
    """Turn [4096 in, 4096 out] into [1, 1, 1024, 1024]."""
    return kernel[None, None, ::_UNITS, ::_UNITS]


def dense_bias(bias: np.ndarray) -> np.ndarray:
    """Turn [4096] into [1024]."""
    return bias[::_UNITS]


def bgr_to_rgb(kernel: np.ndarray) -> np.ndarray:
    """Turn a first kernel, HWIO, for BGR input (OpenCV, Caffe) into one for RGB."""
    return kernel[:, :, ::-1]


def _layer(kernel: str, bias: str, ours: str, turn=oihw_to_hwio, turn_bias=unchanged):
    return {
        kernel: Target(f"params/backbone/{ours}/kernel", turn),
        bias: Target(f"params/backbone/{ours}/bias", turn_bias),
    }


def _torch_layer(theirs: str, ours: str, *turns) -> dict[str, Target]:
    return _layer(f"{theirs}.weight", f"{theirs}.bias", ours, *turns)


def _keras_layer(theirs: str, ours: str, *turns) -> dict[str, Target]:
    return _layer(f"{theirs}/kernel", f"{theirs}/bias", ours, *turns)


def _merged(tables) -> dict[str, Target]:
    return {name: target for table in tables for name, target in table.items()}


VGG16_CAFFE_NAMES = NameMap(
    name="vgg16 with Caffe's names, HWIO",
    targets=_merged(
        _keras_layer(layer, layer, unchanged) for layer in (*VGG16_CONVOLUTIONS, "fc6", "fc7")
    ),
    not_in_file=_NEW_IN_SSD,
    backbones=("vgg16",),
)

VGG16_TORCHVISION = NameMap(
    name="vgg16 of torchvision or timm",
    targets=_merged(
        [
            *(
                _torch_layer(f"features.{index}", conv)
                for index, conv in zip(TORCHVISION_INDICES, VGG16_CONVOLUTIONS, strict=True)
            ),
            _torch_layer("classifier.0", "fc6", fc6_of_dense, dense_bias),
            _torch_layer("classifier.3", "fc7", fc7_of_dense, dense_bias),
            _torch_layer("pre_logits.fc1", "fc6", fc6_of_conv, dense_bias),  # timm
            _torch_layer("pre_logits.fc2", "fc7", fc7_of_dense, dense_bias),
        ]
    ),
    not_in_file=_NEW_IN_SSD,
    not_for_us=("classifier.6.*", "head.*"),
    backbones=("vgg16",),
    expects=TORCHVISION_INPUT,
)

# `vgg16_reducedfc` of https://github.com/amdegroot/ssd.pytorch: one list of layers, in which fc6
# and fc7 are already reduced.
VGG16_REDUCED_TORCH = NameMap(
    name="vgg16_reducedfc of ssd.pytorch",
    targets=_merged(
        _torch_layer(str(index), layer)
        for index, layer in zip(
            (*TORCHVISION_INDICES, 31, 33), (*VGG16_CONVOLUTIONS, "fc6", "fc7"), strict=True
        )
    ),
    not_in_file=_NEW_IN_SSD,
    backbones=("vgg16",),
    expects=CAFFE_INPUT,
)

VGG16_KERAS = NameMap(
    name="vgg16 of Keras, trained on BGR",
    targets=_merged(
        [
            *(
                _keras_layer(
                    conv.replace("conv", "block").replace("_", "_conv"),
                    conv,
                    bgr_to_rgb if conv == "conv1_1" else unchanged,
                )
                for conv in VGG16_CONVOLUTIONS
            ),
            _keras_layer("fc1", "fc6", fc6_of_keras, dense_bias),
            _keras_layer("fc2", "fc7", fc7_of_keras, dense_bias),
        ]
    ),
    not_in_file=_NEW_IN_SSD,
    not_for_us=("predictions/*",),
    backbones=("vgg16",),
    expects=CAFFE_INPUT,
)
