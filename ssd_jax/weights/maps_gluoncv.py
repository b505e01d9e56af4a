"""GluonCV's SSD300 and SSD512 with VGG16: whole detectors, as `save_parameters` names them.

Names follow the attributes of the blocks in gluoncv/model_zoo/ssd/{ssd,vgg_atrous}.py and
gluoncv/nn/predictor.py.
"""

from ssd_jax.weights.maps import NameMap, Target, oihw_to_hwio, unchanged
from ssd_jax.weights.maps_vgg import VGG16_CONVOLUTIONS

_MAPS = 7  # of SSD512; SSD300 has one less
_FIRST_EXTRA = 6  # the first extra layers of ours are conv6_1 and conv6_2


def _layers() -> dict[str, str]:
    """Convolution in the file -> module of ours. Every second layer of a stage is a ReLU."""
    layers = {}
    for conv in VGG16_CONVOLUTIONS:
        block, index = (int(number) for number in conv.removeprefix("conv").split("_"))
        layers[f"features.stages.{block - 1}.{2 * (index - 1)}"] = f"backbone/{conv}"
    for index, conv in enumerate(("fc6", "fc7")):
        layers[f"features.stages.5.{2 * index}"] = f"backbone/{conv}"
    for extra in range(_MAPS - 2):
        for index in (0, 1):
            ours = f"extras/conv{_FIRST_EXTRA + extra}_{index + 1}"
            layers[f"features.extras.{extra}.{2 * index}"] = ours
    for level in range(_MAPS):
        layers[f"class_predictors.{level}.predictor"] = f"heads/class_{level}"
        layers[f"box_predictors.{level}.predictor"] = f"heads/box_{level}"
    return layers


VGG16_GLUONCV = NameMap(
    name="ssd with vgg16_atrous of GluonCV",
    targets={
        "features.norm4.scale": Target(
            "params/backbone/conv4_3_norm/scale", lambda scale: scale.reshape(-1)
        ),
        **{
            f"{theirs}.{leaf}": Target(f"params/{ours}/{our_leaf}", turn)
            for theirs, ours in _layers().items()
            for leaf, our_leaf, turn in (
                ("weight", "kernel", oihw_to_hwio),
                ("bias", "bias", unchanged),
            )
        },
    },
    not_for_us=("features.init_scale", "anchor_generators.*"),
    backbones=("vgg16",),
    expects="config.preprocess: mean (123.675, 116.28, 103.53), std (1, 1, 1)",
)
