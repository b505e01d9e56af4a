"""Parameters of mxnet-ssd and of SageMaker's Object Detection, named as in `.params` files.

"arg:" marks parameters, "aux:" the running statistics of BatchNorm. Channels of the heads have our
order, anchor * 4 + coordinate and anchor * (1 + C) + class, so kernels only need transposing. The
file of a smaller network has fewer levels than its map.
"""

from collections.abc import Iterator

import numpy as np

from ssd_jax.weights.maps import Input, NameMap, Target, norm_targets, oihw_to_hwio, unchanged
from ssd_jax.weights.maps_resnet import BLOCKS, NEW_IN_SSD
from ssd_jax.weights.maps_vgg import VGG16_CONVOLUTIONS

_Entries = Iterator[tuple[str, Target]]


def _convolution(name: str, path: str, *, bias: bool = True) -> _Entries:
    yield f"arg:{name}_weight", Target(f"params/{path}/kernel", oihw_to_hwio)
    if bias:
        yield f"arg:{name}_bias", Target(f"params/{path}/bias", unchanged)


def _batch_norm(name: str, path: str) -> _Entries:
    names = (f"arg:{name}_gamma", f"arg:{name}_beta")
    running = (f"aux:{name}_moving_mean", f"aux:{name}_moving_var")
    yield from norm_targets(path, *names, *running).items()


def _vgg16(fc6: str, fc7: str) -> _Entries:
    for conv in VGG16_CONVOLUTIONS:
        yield from _convolution(conv, f"backbone/{conv}")
    yield from _convolution(fc6, "backbone/fc6")
    yield from _convolution(fc7, "backbone/fc7")


def _relu4_3_scale() -> _Entries:
    yield "arg:relu4_3_scale", Target("params/backbone/conv4_3_norm/scale", np.ravel)


def _resnet50_v2() -> _Entries:
    # MXNet uses 1 for the first scale, whatever the file holds.
    norm = dict(_batch_norm("bn_data", "backbone/bn_data"))
    del norm["arg:bn_data_gamma"]
    yield from norm.items()
    yield from _convolution("conv0", "backbone/conv0", bias=False)
    yield from _batch_norm("bn0", "backbone/bn0")
    for stage, block in BLOCKS:
        unit, path = f"stage{stage}_unit{block}", f"backbone/stage{stage}_block{block}"
        for index in (1, 2, 3):
            yield from _batch_norm(f"{unit}_bn{index}", f"{path}/bn{index}")
            yield from _convolution(f"{unit}_conv{index}", f"{path}/conv{index}", bias=False)
        if block == 1:
            yield from _convolution(f"{unit}_sc", f"{path}/shortcut", bias=False)


def _extras(count: int) -> _Entries:
    """The extra layers: mxnet-ssd numbers them by feature map from 2, we from 6 like Caffe."""
    for i in range(count):
        for ours, kernel in enumerate(("1x1", "3x3"), start=1):
            name = f"multi_feat_{i + 2}_conv_{kernel}_conv"
            yield from _convolution(name, f"extras/conv{i + 6}_{ours}")


def _legacy_extras(count: int) -> _Entries:
    for i in range(count):
        for index in (1, 2):
            yield from _convolution(f"conv{i + 8}_{index}", f"extras/conv{i + 6}_{index}")


def _heads(*features: str) -> _Entries:
    """The heads, named after their feature map."""
    for level, feature in enumerate(features):
        yield from _convolution(f"{feature}_loc_pred_conv", f"heads/box_{level}")
        yield from _convolution(f"{feature}_cls_pred_conv", f"heads/class_{level}")


def _multi_feat(count: int) -> Iterator[str]:
    return (f"multi_feat_{i + 2}_conv_3x3_relu" for i in range(count))


_EXPECTS = Input((123, 117, 104), (1, 1, 1))
# A detector's file may still hold the last layers of its ImageNet classifier.
_VGG16 = {
    "not_for_us": ("arg:fc8_*",),
    "backbones": ("vgg16",),
    "expects": _EXPECTS,
}
_RESNET50_V2 = {
    "not_for_us": ("arg:bn_data_gamma", "arg:bn1_*", "aux:bn1_*", "arg:fc1_*"),
    "backbones": ("resnet50_v2",),
    "expects": _EXPECTS,
}

VGG16_REDUCED_SSD = NameMap(
    name="SSD vgg16_reduced of mxnet-ssd",
    targets=dict(
        [
            *_vgg16("fc6", "fc7"),
            *_relu4_3_scale(),
            *_extras(5),
            *_heads("relu4_3", "relu7", *_multi_feat(5)),
        ]
    ),
    **_VGG16,
)

LEGACY_VGG16_SSD = NameMap(
    name="SSD legacy_vgg16 of mxnet-ssd (Caffe's layers)",
    targets=dict(
        [
            *_vgg16("conv6", "conv7"),
            *_relu4_3_scale(),
            *_legacy_extras(5),
            *_heads("relu4_3", "relu7", *(f"relu{i + 8}_2" for i in range(5))),
        ]
    ),
    **_VGG16,
)

RESNET50_V2_SSD = NameMap(
    name="SSD resnet50 of mxnet-ssd and SageMaker",
    targets=dict([*_resnet50_v2(), *_extras(4), *_heads("_plus12", "_plus15", *_multi_feat(4))]),
    **_RESNET50_V2,
)

VGG16_REDUCED_BASE = NameMap(
    name="vgg16_reduced of mxnet-ssd, ImageNet",
    targets=dict(_vgg16("fc6", "fc7")),
    not_in_file=("params/backbone/conv4_3_norm/*", "*_bn/*", *NEW_IN_SSD),
    **_VGG16,
)

RESNET50_V2_BASE = NameMap(
    name="resnet-50 v2 of MXNet, ImageNet",
    targets=dict(_resnet50_v2()),
    not_in_file=NEW_IN_SSD,
    **_RESNET50_V2,
)

MXNET_MAPS = (
    VGG16_REDUCED_SSD,
    LEGACY_VGG16_SSD,
    RESNET50_V2_SSD,
    VGG16_REDUCED_BASE,
    RESNET50_V2_BASE,
)
