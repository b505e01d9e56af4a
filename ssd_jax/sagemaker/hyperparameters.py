"""The hyperparameters of SageMaker's Object Detection, and their meaning in our config.

Names, defaults and ranges: docs.aws.amazon.com/sagemaker/latest/dg/object-detection-api-config.html
The rest is as in mxnet-ssd (train/train_net.py), whose algorithm it is; docs/sagemaker.md lists the
decisions.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssd_jax.data.sources.sagemaker_records import MAX_CLASSES
from ssd_jax.errors import UserError
from ssd_jax.export.folder import LARGEST_SIDE, MOST_DETECTIONS
from ssd_jax.recipes import recipe_config
from ssd_jax.weights.maps_mxnet import RESNET50_V2_SSD, VGG16_REDUCED_SSD

BACKBONES = {"vgg-16": "vgg16", "resnet-50": "resnet50_v2"}
_LAYERS = {"vgg16": VGG16_REDUCED_SSD, "resnet50_v2": RESNET50_V2_SSD}
LARGEST_INTEGER = 2**31 - 1
# Steps between two lines of the log; the largest number that divides an epoch is used.
_LINES = range(20, 201)


class Rule(NamedTuple):
    """The type, default and range of a hyperparameter; a `default` of None makes it required.

    With `above`, the value must exceed `minimum`; with `below`, it must be less than `maximum`.
    """

    parse: Callable[[str], Any]
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    above: bool = False
    below: bool = False
    choices: tuple = ()

    def read(self, text: str) -> Any:
        """The value; raises ValueError with the message that JSON Schema would give."""
        value = self.parse(text)
        if self.choices and value not in self.choices:
            raise ValueError(f"{text!r} is not one of {list(self.choices)}")
        low, high = self.minimum, self.maximum
        if low is not None and (value < low or (self.above and value == low)):
            or_equal = "or equal to " if self.above else ""
            raise ValueError(f"{text} is less than {or_equal}the minimum of {low:g}")
        if high is not None and (value > high or (self.below and value == high)):
            or_equal = "or equal to " if self.below else ""
            raise ValueError(f"{text} is greater than {or_equal}the maximum of {high:g}")
        return value


def _integer(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?\d+\s*", text):
        raise ValueError(f"{text!r} is not of type 'integer'")
    # As a float first, because Python does not parse integers of thousands of digits.
    if abs(float(text)) > LARGEST_INTEGER:
        raise ValueError(f"{text:.40} is not of type 'integer', of 32 bits")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value - value != 0:
        raise ValueError(f"{text!r} is not of type 'number'")
    return value


def _boolean(text: str) -> bool:
    values = {"true": True, "false": False}
    if text.strip().lower() not in values:
        raise ValueError(f"{text!r} is not of type 'boolean'")
    return values[text.strip().lower()]


def _epochs(text: str) -> tuple[int, ...]:
    wrong = ValueError(f"{text!r} is not a list of rising epochs, as '80, 160'")
    try:
        epochs = tuple(_integer(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise wrong from error
    if any(epoch < 1 for epoch in epochs) or list(epochs) != sorted(set(epochs)):
        raise wrong
    return epochs


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression ({error})") from error
    return text.strip()


# The original has no maximum of integers; these are what a detector, its data and its export hold.
RULES = {
    "num_classes": Rule(_integer, minimum=1, maximum=MAX_CLASSES),
    "num_training_samples": Rule(_integer, minimum=1),
    "base_network": Rule(str, "vgg-16", choices=tuple(BACKBONES)),
    "use_pretrained_model": Rule(_integer, 1, choices=(0, 1)),
    "image_shape": Rule(_integer, 300, minimum=300, maximum=LARGEST_SIDE),
    "epochs": Rule(_integer, 30, minimum=1),
    "mini_batch_size": Rule(_integer, 32, minimum=1),
    "learning_rate": Rule(_number, 0.001, minimum=0, above=True, maximum=1),
    "lr_scheduler_step": Rule(_epochs, ()),
    "lr_scheduler_factor": Rule(_number, 0.1, minimum=0, above=True, maximum=1, below=True),
    "optimizer": Rule(str, "sgd", choices=("sgd", "adam", "rmsprop", "adadelta")),
    # The page of the tuning ranges allows 0 for these two.
    "momentum": Rule(_number, 0.9, minimum=0, maximum=1),
    "weight_decay": Rule(_number, 0.0005, minimum=0, maximum=1, below=True),
    "overlap_threshold": Rule(_number, 0.5, minimum=0, above=True, maximum=1),
    "nms_threshold": Rule(_number, 0.45, minimum=0, above=True, maximum=1),
    "label_width": Rule(_integer, 350, minimum=1),
    "freeze_layer_pattern": Rule(_pattern, ""),
    "kv_store": Rule(str, "dist_sync", choices=("dist_sync", "dist_async")),
    "early_stopping": Rule(_boolean, False),
    "early_stopping_min_epochs": Rule(_integer, 10, minimum=1),
    "early_stopping_patience": Rule(_integer, 5, minimum=1),
    "early_stopping_tolerance": Rule(_number, 0.0, minimum=0, maximum=1),
    # Not documented, but the logs of the container show them among its defaults.
    "nms_topk": Rule(_integer, 400, minimum=1, maximum=MOST_DETECTIONS),
    "_kvstore": Rule(str, "device"),
    "_num_kv_servers": Rule(str, "auto"),
    "_tuning_objective_metric": Rule(str, ""),
    "_begin_epoch": Rule(_integer, 0, choices=(0,)),
}

# The setting that each hyperparameter affects most in `to_config`.
OF_SETTINGS = {
    "model.backbone": "base_network",
    "model.image_size": "image_shape",
    "steps": "epochs",
    "batch_size": "mini_batch_size",
    "optimizer.learning_rate": "learning_rate",
    "optimizer.decay_epochs": "lr_scheduler_step",
    "optimizer.decay_factor": "lr_scheduler_factor",
    "optimizer.name": "optimizer",
    "optimizer.momentum": "momentum",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.steps_per_epoch": "num_training_samples",
    "evaluate.iou_threshold": "overlap_threshold",
    "detect.iou_threshold": "nms_threshold",
    "detect.candidates": "nms_topk",
    "data.label_width": "label_width",
    "early_stopping.enabled": "early_stopping",
    "early_stopping.minimum_steps": "early_stopping_min_epochs",
    "early_stopping.patience": "early_stopping_patience",
    "early_stopping.tolerance": "early_stopping_tolerance",
    # These two settings are made by `build_config`.
    "data.classes": "num_classes",
    "optimizer.rate_multipliers": "freeze_layer_pattern",
}


def parse_hyperparameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all hyperparameters; `given` are strings, as SageMaker passes them.

    Raises:
      UserError: all that is wrong with them, in the wording of the original.
    """
    problems = []
    if unknown := sorted(set(given) - set(RULES)):
        names = ", ".join(map(repr, unknown))
        verb = "was" if len(unknown) == 1 else "were"
        problems.append(f"Additional properties are not allowed ({names} {verb} unexpected)")
    values = {}
    for name, rule in RULES.items():
        if name not in given:
            values[name] = rule.default
            if rule.default is None:
                problems.append(f"{name!r} is a required property")
            continue
        text = given[name] if isinstance(given[name], str) else json.dumps(given[name])
        try:
            values[name] = rule.read(text)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError(
            f"Invalid hyperparameters: {'; '.join(problems)}. Correct them; docs/sagemaker.md has "
            "all names and ranges."
        )
    return values


def to_config(values: Mapping[str, Any], *, images: int, hosts: int, gpus: int) -> ConfigDict:
    """The config of a job, without its data and weights.

    `images` is the number of images in the train channel, `gpus` that of the GPUs of each of the
    `hosts`, or 0. An epoch is a whole number of steps, so that there are exactly as many
    evaluations as epochs.
    """
    config = recipe_config("sagemaker", BACKBONES[values["base_network"]])
    batch = values["mini_batch_size"] * hosts
    epoch = max(1, round(images / batch))
    config.batch_size = batch
    config.epochs, config.steps = None, values["epochs"] * epoch
    config.log_every_steps = max((n for n in _LINES if epoch % n == 0), default=epoch)
    config.model.image_size = values["image_shape"]
    config.data.canvas = max(config.data.canvas, values["image_shape"])
    config.data.label_width = values["label_width"]
    config.data.problems = "skip"  # the original drops boxes without area and continues
    config.evaluate.update(
        {
            "every_steps": epoch,
            "batch_size": batch,
            "metric": "mxnet",
            "iou_threshold": values["overlap_threshold"],
        }
    )
    config.checkpoint.select = "best"
    config.detect.update(
        {
            "iou_threshold": values["nms_threshold"],
            "candidates": values["nms_topk"],
            "max_detections": values["nms_topk"],
        }
    )
    config.early_stopping.update(
        {
            "enabled": values["early_stopping"],
            # Not in epochs of the data, some of which may be left out later.
            "minimum_steps": values["early_stopping_min_epochs"] * epoch,
            "patience": values["early_stopping_patience"],
            "tolerance": values["early_stopping_tolerance"],
        }
    )
    _set_groups(config, values["mini_batch_size"], gpus)
    _set_optimizer(config, values)
    return config


def _set_groups(config: ConfigDict, mini_batch_size: int, gpus: int) -> None:
    """Sets the groups of BatchNorm and loss, which the original computes per GPU."""
    even = gpus and mini_batch_size % gpus == 0
    config.loss.group = mini_batch_size // gpus if even else mini_batch_size
    if config.model.batch_norm == "batch":
        config.model.batch_norm_group = config.loss.group


def _set_optimizer(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets the optimizer as mxnet-ssd does; MXNet's Module also divides adadelta's gradient."""
    name = values["optimizer"]
    config.optimizer.update(
        {
            "name": name,
            "learning_rate": values["learning_rate"] / (10 if name == "rmsprop" else 1),
            "momentum": values["momentum"],
            "weight_decay": values["weight_decay"] if name in ("sgd", "rmsprop") else 0.0,
            "decay_epochs": tuple(map(float, values["lr_scheduler_step"])),
            "decay_factor": values["lr_scheduler_factor"],
            "steps_per_epoch": max(1, values["num_training_samples"] // config.batch_size),
        }
    )
    if name == "adadelta":
        config.optimizer.update(
            {
                "learning_rate": 1.0,
                "decay_epochs": (),
                "rate_multipliers": (),
                "gradient_scale": 1 / config.loss.group,
            }
        )


def frozen_paths(pattern: str, backbone: str, paths: Iterable[str]) -> list[str]:
    """The paths of the parameters whose name, the original's or ours, starts with a match.

    `paths` are e.g. "params/backbone/conv1_1/kernel"; the pattern is matched from "backbone" on,
    and at the start of the original's name, e.g. "conv1_1_weight".

    Raises:
      UserError: the pattern matches nothing.
    """
    theirs = {
        target.path: name.removeprefix("arg:")
        for name, target in _LAYERS[backbone].targets.items()
        if name.startswith("arg:")
    }
    begins = re.compile(pattern).match
    paths = list(paths)
    found = [
        path
        for path in paths
        if begins(path.removeprefix("params/")) or begins(theirs.get(path, "\n"))
    ]
    if not found:
        examples = [theirs.get(path, path) for path in paths[:2]]
        raise UserError(
            f"freeze_layer_pattern: {pattern!r} does not match the start of any parameter name. "
            f"Expected a match of names such as {', '.join(examples)}, or of ours, such as "
            f"{paths[0].removeprefix('params/')}; with .* in front it matches anywhere."
        )
    return found
