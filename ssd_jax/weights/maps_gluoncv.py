"""Networks of GluonCV and of Gluon's model zoo.

The names in a detector's `.params` file have one of two forms, and every detector's map knows both.
`save_parameters` (MXNet 1.3 and later) joins the attributes of the blocks, as in
gluoncv/model_zoo/ssd/{ssd,vgg_atrous}.py and gluoncv/nn/predictor.py; with ResNet-50, `features`
is a SymbolBlock (gluoncv/nn/feature.py), whose parameters keep the names of the symbol. The older
`save_params` gives each parameter its own name without the prefix of the whole network; there the
class and box predictors are numbered in alternation. Both forms were taken from files: MXNet 1.3.1
with GluonCV 0.1.0, and MXNet 1.9.1 with GluonCV 0.10.5.

Gluon counts convolutions and BatchNorms in the order in which a stage of a ResNet creates them.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from ssd_jax.weights.maps import (
    TORCHVISION_INPUT,
    Input,
    NameMap,
    Target,
    norm_targets,
    oihw_to_hwio,
    unchanged,
)
from ssd_jax.weights.maps_resnet import BLOCKS, NEW_IN_SSD
from ssd_jax.weights.maps_vgg import VGG16_CONVOLUTIONS

_FIRST_EXTRA = 6  # the first extra layers of ours are conv6_1 and conv6_2
_ANCHORS = ("anchor_generators.*", "ssdanchorgenerator*")

# The names in the file before "weight" or "gamma", and our modules.
_Layers = Iterator[tuple[str, str]]  # convolution, ours
_NormedLayers = Iterator[tuple[str, str, str]]  # convolution, BatchNorm, ours


def _convolution(theirs: str, ours: str) -> dict[str, Target]:
    return {
        f"{theirs}weight": Target(f"params/{ours}/kernel", oihw_to_hwio),
        f"{theirs}bias": Target(f"params/{ours}/bias", unchanged),
    }


def _heads(levels: int) -> dict[str, Target]:
    targets = {}
    for level in range(levels):
        for index, kind in enumerate(("class", "box")):
            ours = f"heads/{kind}_{level}"
            targets |= _convolution(f"{kind}_predictors.{level}.predictor.", ours)
            targets |= _convolution(f"convpredictor{2 * level + index}_conv0_", ours)
    return targets


def _vgg16_layers() -> _Layers:
    """Every second layer of a stage is a ReLU."""
    old = "vggatrousextractor0_"
    for number, conv in enumerate(VGG16_CONVOLUTIONS):
        block, index = (int(digit) for digit in conv.removeprefix("conv").split("_"))
        yield f"features.stages.{block - 1}.{2 * (index - 1)}.", f"backbone/{conv}"
        yield f"{old}conv{number}_", f"backbone/{conv}"
    for index, conv in enumerate(("fc6", "fc7")):
        yield f"features.stages.5.{2 * index}.", f"backbone/{conv}"
        yield f"{old}dilated_conv{index}_", f"backbone/{conv}"
    for extra in range(5):  # SSD300 has one less
        for index in (0, 1):
            ours = f"extras/conv{_FIRST_EXTRA + extra}_{index + 1}"
            yield f"features.extras.{extra}.{2 * index}.", ours
            yield f"{old}extra{extra}_conv{index}_", ours


def _vgg16() -> dict[str, Target]:
    scale = Target("params/backbone/conv4_3_norm/scale", lambda scale: scale.reshape(-1))
    targets = dict.fromkeys(
        ("features.norm4.scale", "vggatrousextractor0_normalize0_normalize_scale"), scale
    )
    for theirs, ours in _vgg16_layers():
        targets |= _convolution(theirs, ours)
    return targets | _heads(7)


VGG16_GLUONCV = NameMap(
    name="ssd with vgg16_atrous of GluonCV",
    targets=_vgg16(),
    not_for_us=("features.init_scale", "vggatrousextractor0_init_scale", *_ANCHORS),
    backbones=("vgg16",),
    expects=Input(TORCHVISION_INPUT.mean, (1, 1, 1)),
)


def _detector_layers(form: str) -> _NormedLayers:
    made = Counter()
    yield f"{form}resnetv10_conv0_", f"{form}resnetv10_batchnorm0_", "backbone/conv1"
    for stage, block in BLOCKS:
        theirs = f"{form}resnetv10_stage{stage}_"
        for conv in ("conv1", "conv2", "conv3", *(["shortcut"] if block == 1 else [])):
            number = made[stage]
            ours = f"backbone/stage{stage}_block{block}/{conv}"
            yield f"{theirs}conv{number}_", f"{theirs}batchnorm{number}_", ours
            made[stage] += 1


def _classifier_layers() -> _NormedLayers:
    """In a body every third layer is a ReLU."""
    yield "features.0.", "features.1.", "backbone/conv1"
    for stage, block in BLOCKS:
        theirs, ours = f"features.{stage + 3}.{block - 1}", f"backbone/stage{stage}_block{block}"
        for index in (1, 2, 3):
            first = 3 * (index - 1)
            yield f"{theirs}.body.{first}.", f"{theirs}.body.{first + 1}.", f"{ours}/conv{index}"
        if block == 1:
            yield f"{theirs}.downsample.0.", f"{theirs}.downsample.1.", f"{ours}/shortcut"


def _extra_layers(form: str) -> _NormedLayers:
    for extra in range(4):
        for index, theirs in enumerate((f"{form}expand_trans", f"{form}expand"), start=1):
            ours = f"extras/conv{_FIRST_EXTRA + extra}_{index}"
            yield f"{theirs}_conv{extra}_", f"{theirs}_bn{extra}_", ours


def _normed(layers: _NormedLayers, *, running: str) -> dict[str, Target]:
    targets = {}
    for conv, norm, ours in layers:
        targets[f"{conv}weight"] = Target(f"params/{ours}/kernel", oihw_to_hwio)
        names = (f"{norm}gamma", f"{norm}beta", f"{norm}{running}_mean", f"{norm}{running}_var")
        targets |= norm_targets(f"{ours}_bn", *names)
    return targets


def _biases(layers: _NormedLayers) -> dict[str, str]:
    """Gluon gives one to the 1x1 convolutions of a block, but not to its shortcut."""
    return {
        f"{conv}bias": f"batch_stats/{ours}_bn/mean"
        for conv, _, ours in layers
        if "_block" in ours and ours.endswith(("/conv1", "/conv3"))
    }


def _both_forms(layers: Callable[[str], _NormedLayers]) -> _NormedLayers:
    for form in ("features.", ""):
        yield from layers(form)


def _resnet50() -> dict[str, Target]:
    # MXNet uses 1 for the scales of the extra layers, whatever the file holds.
    extras = _normed(_both_forms(_extra_layers), running="moving")
    extras = {name: target for name, target in extras.items() if not name.endswith("gamma")}
    return _normed(_both_forms(_detector_layers), running="running") | extras | _heads(6)


RESNET50_GLUONCV = NameMap(
    name="ssd with resnet50_v1 of GluonCV",
    targets=_resnet50(),
    not_for_us=("features.expand_*_gamma", "expand_*_gamma", *_ANCHORS),
    biases=_biases(_both_forms(_detector_layers)),
    backbones=("resnet50_v1",),
    expects=TORCHVISION_INPUT,
)

RESNET50_GLUON = NameMap(
    name="resnet50_v1 of Gluon's model zoo, ImageNet",
    targets=_normed(_classifier_layers(), running="running"),
    not_in_file=NEW_IN_SSD,
    not_for_us=("output.*",),
    biases=_biases(_classifier_layers()),
    backbones=("resnet50_v1",),
    expects=TORCHVISION_INPUT,
)

GLUONCV_MAPS = (VGG16_GLUONCV, RESNET50_GLUONCV, RESNET50_GLUON)
