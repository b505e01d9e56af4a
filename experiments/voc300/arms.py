"""The arms of the comparison: recipes, parts of `best`, and the protocol that all share."""

import pathlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssd_jax.config_check import check
from ssd_jax.data.open import open_data
from ssd_jax.recipes import recipe_config

# The epochs of a recipe; decay_epochs and the EMA are shortened with the run.
RECIPE_EPOCHS = 240.0
# `best` averages over 5,000 steps (a decay of 0.9998) of the 124,000 of 240 epochs of VOC07+12.
AVERAGED_PART = 0.04
WARMUP_PART = 0.05
# Peak learning rates: the paper's at batch 32; half of mxnet-ssd's 0.004 at batch 64.
RATES = {"paper": 1e-3, "sagemaker": 2e-3, "best": 1e-3}
# In proportion to the batch (8 instead of 32), except for `sagemaker`: it divides its losses by all
# anchors that count, a quarter of which are positives, and its own rate is too low for a short run.
REDUCED_RATES = {"paper": 2.5e-4, "sagemaker": 1e-3, "best": 2.5e-4}


class Scale(NamedTuple):
    """The size of the experiment; `train` and `val` are numbers of images, None for all."""

    name: str
    image_size: int
    train: int | None
    val: int | None
    batch_size: int
    epochs: float
    evaluations: int
    frozen: str = ""  # pattern of the backbone's layers that are not trained
    width: float = 1.0
    decays: tuple[float, ...] = ()  # fractions of the run after which the rate falls to a tenth
    rates: Mapping[str, float] = types.MappingProxyType(RATES)


FULL = Scale("full", 300, None, None, batch_size=32, epochs=120.0, evaluations=12)
# About 45 minutes on two idle CPU cores. The recipes spend one or two thirds of a run at a tenth of
# the rate or less, which a run of so few steps cannot afford.
REDUCED = Scale(
    "reduced",
    128,
    None,
    250,
    batch_size=8,
    epochs=12.0,
    evaluations=4,
    frozen="conv[123]_*",
    decays=(0.7, 0.9),
    rates=types.MappingProxyType(REDUCED_RATES),
)


def of_length(scale: Scale, epochs: float) -> Scale:
    """The same scale with longer or shorter runs; the schedules stretch with them."""
    return scale._replace(name=f"{scale.name}-{epochs:g}-epochs", epochs=epochs)


class Arm(NamedTuple):
    """A recipe, and the settings that differ from it.

    With `weights_of` nothing is trained: that arm's checkpoint is measured with these settings.
    """

    recipe: str
    changes: Mapping[str, Any] = types.MappingProxyType({})
    weights_of: str = ""


def arms(scale: Scale) -> dict[str, Arm]:
    """All arms by name."""
    sizes = tuple(round(part * scale.image_size) for part in (1.0, 1.2, 1.4))
    scores = {"model.class_activation": "sigmoid"}
    varifocal = {"loss.class_loss": "varifocal", "loss.focal_alpha": 0.75}
    several = {"augment.image_sizes": sizes}
    return {
        "paper": Arm("paper"),
        "sagemaker": Arm("sagemaker"),
        "best": Arm("best"),
        "without pyramid": Arm("best", {"model.fpn_channels": 0}),
        "without box loss by overlap": Arm(
            "best", {"loss.box_loss": "smooth_l1", "loss.box_weight": 1.0}
        ),
        "without mosaic": Arm(
            "best", {"augment.mosaic.probability": 0.0, "augment.expand.probability": 0.5}
        ),
        "without mosaic at the end": Arm("best", {"augment.mosaic.until": 0.75}),
        "without cosine": Arm("best", {"optimizer.schedule": "step"}),
        "without average": Arm("best", {"optimizer.ema_decay": 0.0}, weights_of="best"),
        "without soft suppression": Arm("best", {"detect.nms": "hard"}, weights_of="best"),
        "without mirrored view": Arm("best", {"detect.flip": False}, weights_of="best"),
        "with focal loss": Arm("best", {"loss.class_loss": "focal"} | scores),
        "with quality focal loss": Arm("best", {"loss.class_loss": "quality_focal"} | scores),
        "with varifocal loss": Arm("best", varifocal | scores),
        "with label smoothing": Arm("best", {"loss.label_smoothing": 0.1}),
        "with several sizes in training": Arm("best", several),
        "with several sizes in both": Arm(
            "best",
            several | {"detect.image_sizes": sizes},
            weights_of="with several sizes in training",
        ),
    }


def arm_config(
    arm: Arm, *, seed: int, scale: Scale, data: pathlib.Path, weights: str, classes: tuple[str, ...]
) -> ConfigDict:
    """The settings of a run; all arms share data, weights, length, warm-up and clipping."""
    config = recipe_config(arm.recipe, "vgg16")
    config.seed = seed
    config.model.update({"image_size": scale.image_size, "width": scale.width})
    config.batch_size, config.epochs = scale.batch_size, scale.epochs
    for split in ("train", "val"):
        config.data[split].update({"root": str(data), "image_sets": (split,)})
    config.data.update({"classes": classes, "canvas": 300, "cache": "ram"})
    config.weights.path = weights
    config.loss.group = min(config.loss.group, scale.batch_size)
    config.evaluate.update({"every_epochs": scale.epochs / scale.evaluations, "batch_size": 20})
    config.checkpoint.update({"every_steps": 1000, "keep_latest": 1})

    settings = config.optimizer
    images = len(open_data(str(data), split=("train",), classes=classes))
    steps = scale.epochs * images / scale.batch_size
    settings.learning_rate = scale.rates[arm.recipe]
    settings.warmup_steps = max(1, round(WARMUP_PART * steps))
    settings.clip_norm = 35.0
    decays = scale.decays or tuple(e / RECIPE_EPOCHS for e in settings.decay_epochs or ())
    if decays:
        settings.decay_epochs = tuple(part * scale.epochs for part in decays)
    if settings.ema_decay:
        settings.ema_decay = max(0.0, 1 - 1 / max(1.0, AVERAGED_PART * steps))
    if scale.frozen:
        frozen = ((f"params/backbone/{scale.frozen}", 0.0),)
        settings.rate_multipliers = (*settings.rate_multipliers, *frozen)
    config.update_from_flattened_dict(dict(arm.changes))
    check(config)
    return config


def folder_of(runs: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """The folder of a run."""
    return runs / f"{folder_name(name)}-{seed}"


def folder_name(name: str) -> str:
    """The name of an arm for use in file names."""
    return name.replace(" ", "_")
