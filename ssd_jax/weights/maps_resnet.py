"""ResNet-50 in weight files."""

from ssd_jax.weights.maps import (
    CAFFE_INPUT,
    TORCHVISION_INPUT,
    NameMap,
    Target,
    norm_targets,
    oihw_to_hwio,
    unchanged,
)
from ssd_jax.weights.maps_vgg import bgr_to_rgb

# Our (stage, block), both from 1.
BLOCKS = tuple(
    (stage, block)
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
    for block in range(1, blocks + 1)
)
NEW_IN_SSD = ("params/extras/*", "params/heads/*", "batch_stats/extras/*", "*/fpn/*")


def kernel_target(layer: str, transform) -> Target:
    """The kernel of a convolution of the backbone."""
    return Target(f"params/backbone/{layer}/kernel", transform)


def torch_norm_targets(theirs: str, ours: str) -> dict[str, Target]:
    """A BatchNorm of PyTorch; `ours` is a module of the backbone."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    return norm_targets(f"backbone/{ours}", *(f"{theirs}.{leaf}" for leaf in leaves))


def _torchvision() -> dict[str, Target]:
    layers = {("conv1", "bn1"): "conv1"}  # (convolution, norm) in the file -> our convolution
    for stage, block in BLOCKS:
        theirs, ours = f"layer{stage}.{block - 1}", f"stage{stage}_block{block}"
        for index in (1, 2, 3):
            layers[f"{theirs}.conv{index}", f"{theirs}.bn{index}"] = f"{ours}/conv{index}"
        if block == 1:
            layers[f"{theirs}.downsample.0", f"{theirs}.downsample.1"] = f"{ours}/shortcut"
    targets = {}
    for (conv, norm), ours in layers.items():
        targets[f"{conv}.weight"] = kernel_target(ours, oihw_to_hwio)
        targets |= torch_norm_targets(norm, f"{ours}_bn")
    return targets


RESNET50_TORCHVISION = NameMap(
    name="resnet50 v1.5 of torchvision or timm",
    targets=_torchvision(),
    not_in_file=NEW_IN_SSD,
    not_for_us=("fc.*", "*.num_batches_tracked"),
    backbones=("resnet50",),
    expects=TORCHVISION_INPUT,
)


def _keras_layers() -> dict[str, str]:
    """Layer of `keras.applications.ResNet50` without its _conv or _bn -> our convolution."""
    layers = {"conv1": "conv1"}
    for stage, block in BLOCKS:
        for index, conv in enumerate(("shortcut", "conv1", "conv2", "conv3")):
            if conv != "shortcut" or block == 1:
                layers[f"conv{stage + 1}_block{block}_{index}"] = (
                    f"stage{stage}_block{block}/{conv}"
                )
    return layers


def _keras() -> dict[str, Target]:
    targets = {}
    for theirs, ours in _keras_layers().items():
        turn = bgr_to_rgb if ours == "conv1" else unchanged
        targets[f"{theirs}_conv/kernel"] = kernel_target(ours, turn)
        leaves = ("gamma", "beta", "moving_mean", "moving_variance")
        names = (f"{theirs}_bn/{leaf}" for leaf in leaves)
        targets |= norm_targets(f"backbone/{ours}_bn", *names)
    return targets


# Its epsilon is 1.001e-5, ours 1e-5.
RESNET50_KERAS = NameMap(
    name="resnet50 v1 of Keras, trained on BGR",
    targets=_keras(),
    not_in_file=NEW_IN_SSD,
    not_for_us=("predictions/*",),
    biases={
        f"{theirs}_conv/bias": f"batch_stats/backbone/{ours}_bn/mean"
        for theirs, ours in _keras_layers().items()
    },
    backbones=("resnet50_v1",),
    expects=CAFFE_INPUT,
)


def _timm_v2() -> dict[str, Target]:
    targets = {"stem.conv.weight": kernel_target("conv0", oihw_to_hwio)}
    for stage, block in BLOCKS:
        theirs, ours = f"stages.{stage - 1}.blocks.{block - 1}", f"stage{stage}_block{block}"
        for index in (1, 2, 3):
            targets[f"{theirs}.conv{index}.weight"] = kernel_target(
                f"{ours}/conv{index}", oihw_to_hwio
            )
            targets |= torch_norm_targets(f"{theirs}.norm{index}", f"{ours}/bn{index}")
        if block == 1:
            targets[f"{theirs}.downsample.conv.weight"] = kernel_target(
                f"{ours}/shortcut", oihw_to_hwio
            )
    return targets


# The blocks are the same, but not the stem: timm has no BatchNorm before its first convolution, and
# no BatchNorm or ReLU after it; our BatchNorms there start as the identity. Our feature maps are
# not normalised, so the norm after timm's last block is not used.
RESNET50_V2_TIMM = NameMap(
    name="resnetv2_50 of timm, whose stem lacks our bn_data, bn0 and ReLU",
    targets=_timm_v2(),
    not_in_file=(*NEW_IN_SSD, "*/backbone/bn_data/*", "*/backbone/bn0/*"),
    not_for_us=("norm.*", "head.*", "*.num_batches_tracked"),
    backbones=("resnet50_v2",),
    expects="config.preprocess: as the model's own configuration says, see docs/weights.md",
)
