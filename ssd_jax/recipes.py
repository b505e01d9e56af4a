"""The recipes: every choice that makes a run one algorithm or another.

docs/recipes.md compares the two faithful ones in detail, with the sources; docs/best.md says what
the third adds.
"""

from ml_collections import ConfigDict

from ssd_jax.config import default_config, flat_items, get
from ssd_jax.errors import UserError

RESNETS = ("resnet50", "resnet50_v1", "resnet50_v2")
# The groups that belong to the algorithm; the rest is data, hardware and preference.
_SECTIONS = ("model", "anchors", "preprocess", "augment", "match", "loss", "optimizer", "detect")
# Settings that every user chooses for their own images.
_FREE = ("model.image_size", "model.width", "model.dtype", "anchors.scales")

# Settings that change how a run is computed and reported, but not its result.
HARDWARE = ("sharding", "data.cache", "data.threads", "data.doctor", "log_every_steps",
            "checkpoint.every_steps", "checkpoint.keep_latest", "evaluate.batch_size",
            "watchdog.factor", "watchdog.minimum_seconds", "watchdog.first_seconds")  # fmt: skip


def recipe_config(recipe: str, backbone: str) -> ConfigDict:
    """All settings of "paper", "sagemaker" or "best" with one of its backbones."""
    if recipe == "paper":
        return _paper(backbone)
    if recipe == "sagemaker":
        return _sagemaker(backbone)
    if recipe == "best":
        return _best(backbone)
    raise UserError(f"recipe: got {recipe!r}, expected paper, sagemaker or best.")


def recipe_changes(config: ConfigDict) -> dict[str, dict[str, object]]:
    """The settings in which a config differs from its recipe: name -> values of both.

    The values have the keys "recipe" and "run".
    """
    recipe = recipe_config(config.recipe, config.model.backbone)
    return {
        name: {"recipe": get(recipe, name), "run": value}
        for name, value in flat_items(config)
        if name.split(".")[0] in _SECTIONS and name not in _FREE and value != get(recipe, name)
    }


def _paper(backbone: str) -> ConfigDict:
    """The SSD of the paper (arXiv:1512.02325); a ResNet with GluonCV's anchors, input, schedule."""
    config = default_config()
    config.model.backbone = backbone
    if backbone in RESNETS:
        config.model.update({"batch_norm": "batch", "batch_norm_group": 8})
        config.anchors.layout = "gluoncv"
        config.preprocess.std = (58.395, 57.12, 57.375)
    return config


def _sagemaker(backbone: str) -> ConfigDict:
    """mxnet-ssd as published; the artefacts of SageMaker's Object Detection have its graph.

    The settings are those of the published runs: 512 px, batch 16 on one GPU with a learning rate
    of 0.0005; for batch 64 on four GPUs it is 0.002 (ResNet-50) or 0.004 (VGG16).
    """
    if backbone not in ("resnet50_v2", "vgg16"):
        raise UserError(
            f"config.model.backbone: got {backbone!r}, expected resnet50_v2 or vgg16, the networks "
            "of the recipe sagemaker."
        )
    config = default_config()
    config.recipe = "sagemaker"
    config.batch_size = 16
    config.epochs = 240.0
    config.model.update({"backbone": backbone, "image_size": 512, "extras": "mxnet"})
    config.anchors.layout = "mxnet"
    config.preprocess.mean = (123.0, 117.0, 104.0)
    config.augment.distort.probability = 0.0
    config.augment.jitter.probability = 0.5
    config.augment.expand.update({"minimum": 1.05, "fill": (127.0, 127.0, 127.0)})
    config.augment.crop.update(
        {
            "min_ious": (0.1, 0.3, 0.5, 0.7, 0.9),
            "trials": 25,
            "probability": 5 / 6,
            "choice": "first",
        }
    )
    config.augment.interpolations = ("nearest", "linear", "cubic", "area", "lanczos4")
    config.augment.exact_boxes = False
    config.match.update({"strict": True, "empty_is_negative": False})
    config.loss.update({"minimum_negatives": 0, "normalization": "valid", "group": 16})
    config.optimizer.update(
        {
            "learning_rate": 5e-4,
            "decay_epochs": (80.0, 160.0),
            "learning_rate_in_momentum": True,
            "rate_multipliers": (("params/extras/*/bias", 2.0), ("params/heads/*/bias", 2.0)),
        }
    )
    kernels = config.optimizer.decay_multipliers
    if backbone == "vgg16":
        config.optimizer.decay_multipliers = (*kernels, ("*/conv4_3_norm/scale", 0.1))
    else:
        config.optimizer.decay_multipliers = (*kernels, ("*/scale", 1.0))
        config.model.update(
            {"batch_norm": "batch", "batch_norm_group": 16, "batch_norm_epsilon": 2e-5}
        )
    config.detect.update({"class_per_anchor": "best", "strict": False, "max_detections": 400})
    return config


def _best(backbone: str) -> ConfigDict:
    """The paper's SSD at 512 px with later techniques, chosen by published gains."""
    if backbone not in ("vgg16", "resnet50"):
        raise UserError(
            f"config.model.backbone: got {backbone!r}, expected vgg16 or resnet50, the networks "
            "of the recipe best."
        )
    config = _paper(backbone)
    config.recipe = "best"
    config.epochs = 240.0
    config.model.update({"image_size": 512, "fpn_channels": 256})
    if backbone == "resnet50":
        config.model.first_stage = 2  # stride 8, where the anchors of VGG16 start too
    # Both make objects smaller; with half of each they are as large as with the paper's expansion.
    config.augment.mosaic.probability = config.augment.expand.probability = 0.25
    config.loss.update({"box_loss": "ciou", "box_weight": 5.0})
    config.optimizer.update(
        {"schedule": "cosine", "warmup_steps": 1000, "clip_norm": 35.0, "ema_decay": 0.9998}
    )
    config.detect.update({"nms": "gaussian", "flip": True})
    return config
