"""The settings of an experiment: defaults, overrides from the command line, checks.

Configs are read where a run is put together (`experiment.py`) and nowhere below it.
"""

import ast
import difflib
import importlib.util
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssd_jax.errors import UserError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def default_config() -> ConfigDict:
    """The SSD of the paper (https://arxiv.org/abs/1512.02325) with VGG16 at 300 px."""
    config = ConfigDict()
    config.recipe = "paper"
    config.seed = 0
    config.batch_size = 32
    config.epochs = placeholder(float)  # exactly one of epochs and steps is set
    config.steps = placeholder(int)
    config.log_every_steps = 10
    config.model = {
        "backbone": "vgg16",  # vgg16 | resnet50 | small
        "image_size": 300,  # px; the network's square input
        "width": 1.0,  # multiplies every channel count
        "first_stage": placeholder(int),  # resnet50: the finest stage that is detected on
        "dtype": "float32",  # of the computation: float32 | bfloat16; parameters are float32
        "batch_norm": "none",  # none | frozen | batch; a ResNet needs one of the latter two
        "batch_norm_group": 0,  # images that share their statistics; 0 = the whole batch
    }
    config.anchors = {
        "scales": (),  # one more than maps, as parts of the image side; () = the paper's
    }
    config.weights = {
        "path": "",  # a safetensors file with the backbone's weights; "" = from scratch
    }
    split = {
        "root": "",  # a VOC devkit, or a folder that holds Annotations/ and JPEGImages/
        "image_sets": (),  # as "VOC2007/trainval", or "train" in a folder without years
    }
    config.data = {
        "train": dict(split),
        "val": dict(split),  # evaluated during training; may choose the best checkpoint
        "test": dict(split),  # evaluated once, at the end; root "" = there is none
        "classes": (),  # names in the order of their ids; () = found in the training split
        "problems": "error",  # error | skip, for records and boxes that cannot be used
        "canvas": 512,  # px; larger pictures are scaled down to fit when they are decoded
        "cache": "none",  # none | ram: keep the decoded pictures
        "threads": 4,
    }
    config.augment = {  # see ops/augment.py for what each word does
        "flip": 0.5,  # probability
        "flip_vertical": 0.0,
        "distort": {  # probability 0 = none
            "probability": 0.5,
            "brightness": 32.0,
            "contrast": (0.5, 1.5),
            "saturation": (0.5, 1.5),
            "hue": 18.0,
        },
        "expand": {"probability": 0.5, "scale": (1.0, 4.0)},  # probability 0 = none
        "crop": {  # min_ious () = none
            "min_ious": (0.1, 0.3, 0.5, 0.7, 0.9, 0.0),
            "trials": 50,
            "scale": (0.3, 1.0),
            "aspect": (0.5, 2.0),
        },
    }
    config.preprocess = {
        "mean": (123.675, 116.28, 103.53),  # RGB, ImageNet; also fills what expansion uncovers
        "std": (1.0, 1.0, 1.0),
    }
    config.match = {"iou_threshold": 0.5}
    config.loss = {
        "negatives_per_positive": 3,
        "minimum_negatives": 3,  # also in an image without objects
        "box_weight": 1.0,
    }
    config.optimizer = {
        "name": "sgd",  # sgd | adamw
        "learning_rate": 1e-3,  # the highest
        "momentum": 0.9,  # sgd only
        "weight_decay": 5e-4,
        "decay": "kernels",  # kernels | all: the parameters that weight decay pulls at
        "clip_norm": placeholder(float),  # largest global norm of the gradient
        "schedule": "step",  # step | one_cycle
        "decay_epochs": (160.0, 200.0),  # step: learning rate times decay_factor after these
        "decay_factor": 0.1,
        "warmup_steps": 0,  # step: linear from 0
    }
    config.detect = {
        "score_threshold": 0.01,
        "iou_threshold": 0.45,
        "candidates_per_class": 400,
        "max_detections": 200,
    }
    config.evaluate = {
        "every_epochs": placeholder(float),  # neither = only at the end
        "every_steps": placeholder(int),
        "batch_size": 32,
        "metric": "voc07",  # voc07 | voc12: which mAP names the best checkpoint and the result
        "iou_threshold": 0.5,
    }
    config.checkpoint = {
        "every_steps": 1000,  # and after each evaluation
        "keep_latest": 2,
        "select": "last",  # last | best: what the end of a run, evaluate and predict use
    }
    return config.lock()


def load_config(path: str) -> ConfigDict:
    """Runs `get_config(variant)` of a config file given as `FILE.py` or `FILE.py:variant`."""
    name, _, variant = path.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        raise UserError(f"config {name}: no such file. Give the path of a config, see configs/.")
    spec = importlib.util.spec_from_file_location(f"ssd_jax_config_{file.stem}", file)
    if spec is None:
        raise UserError(f"config {name}: not a Python file. Give the path of a config.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:
        # ConfigDict prints all settings between what is wrong and the nearest name.
        parts = re.findall(r'Key "[^"]*" does not exist|Did you mean "[^"]*"', str(error))
        raise UserError(f"config {path}: {'. '.join(parts) or repr(error)}.") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config gave {config!r}, expected a ConfigDict.")
    return config


def override(config: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Sets `("optimizer.learning_rate", "3e-4")` and the like, in place, keeping types."""
    known = dict(flat_items(config))
    for name, text in assignments:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
            raise UserError(f"--config.{name}: no such setting. The nearest is --config.{near}.")
        try:
            config.update_from_flattened_dict({name: _parsed(text, _get(config, name))})
        except TypeError:
            now = _get(config, name)
            raise UserError(
                f"--config.{name}: got {text!r}, expected a value of the kind of {now!r}."
            ) from None


def _parsed(text: str, now: object) -> object:
    if isinstance(now, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = tuple(text.split(",")) if isinstance(now, tuple) else text
    if isinstance(now, tuple) and not isinstance(value, tuple):
        value = tuple(value) if isinstance(value, list) else (value,)
    return value


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first value that no run could use; touches no file."""

    def expect(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"config.{name}: got {_get(config, name)!r}, expected {expected}.")

    def choice(name: str, *choices: str) -> None:
        value = _get(config, name)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
            expect(name, False, f"one of {', '.join(choices)}; the nearest is {near}")

    def fraction(name: str) -> None:
        expect(name, 0.0 <= _get(config, name) <= 1.0, "a number from 0 to 1")

    def at_least(name: str, least: int) -> None:
        value = _get(config, name)
        expect(name, value is None or value >= least, f"at least {least}")

    defaults = dict(flat_items(default_config()))
    for name, value in flat_items(config):
        expect(name, value is not None or defaults[name] is None, "a value")
    choice("recipe", "paper")
    choice("model.backbone", "vgg16", "resnet50", "small")
    choice("model.dtype", "float32", "bfloat16")
    choice("model.batch_norm", "none", "frozen", "batch")
    choice("data.problems", "error", "skip")
    choice("data.cache", "none", "ram")
    choice("optimizer.name", "sgd", "adamw")
    choice("optimizer.schedule", "step", "one_cycle")
    choice("optimizer.decay", "kernels", "all")
    choice("evaluate.metric", "voc07", "voc12")
    choice("checkpoint.select", "last", "best")
    for name in ("match.iou_threshold", "detect.iou_threshold", "detect.score_threshold",
                 "evaluate.iou_threshold", "optimizer.momentum", "augment.flip",
                 "augment.flip_vertical",
                 "augment.distort.probability", "augment.expand.probability"):  # fmt: skip
        fraction(name)
    for name in ("batch_size", "steps", "log_every_steps", "data.canvas",
                 "evaluate.every_steps", "evaluate.batch_size", "checkpoint.every_steps",
                 "checkpoint.keep_latest", "detect.candidates_per_class",
                 "detect.max_detections", "augment.crop.trials"):  # fmt: skip
        at_least(name, 1)
    for name in ("loss.negatives_per_positive", "loss.minimum_negatives", "loss.box_weight",
                 "optimizer.weight_decay", "optimizer.warmup_steps", "data.threads",
                 "model.batch_norm_group"):  # fmt: skip
        at_least(name, 0)
    at_least("model.image_size", 64)
    for name in ("epochs", "optimizer.learning_rate", "optimizer.clip_norm", "model.width",
                 "evaluate.every_epochs", "optimizer.decay_factor"):  # fmt: skip
        value = _get(config, name)
        expect(name, value is None or value > 0, "more than 0")
    expect("steps", (config.steps is None) != (config.epochs is None),
           "exactly one of config.steps and config.epochs")  # fmt: skip
    expect("evaluate.every_steps",
           config.evaluate.every_steps is None or config.evaluate.every_epochs is None,
           "at most one of every_steps and every_epochs")  # fmt: skip
    expect("model.batch_norm", config.model.backbone != "resnet50"
           or config.model.batch_norm != "none",
           "frozen or batch: a resnet50 has batch normalisation")  # fmt: skip
    group = config.model.batch_norm_group
    expect("model.batch_norm_group", group == 0 or config.batch_size % group == 0,
           f"a divisor of batch_size {config.batch_size}")  # fmt: skip
    expect("seed", 0 <= config.seed < 2**31, "a number from 0 to 2147483647")
    expect("evaluate.iou_threshold", config.evaluate.iou_threshold > 0, "more than 0")
    for name in ("preprocess.mean", "preprocess.std"):
        expect(name, _numbers(_get(config, name), 3), "three numbers, one a channel (RGB)")
    expect("preprocess.std", 0 not in config.preprocess.std, "numbers that are not 0")
    for name in ("augment.distort.contrast", "augment.distort.saturation",
                 "augment.expand.scale", "augment.crop.scale", "augment.crop.aspect"):  # fmt: skip
        low_high = _get(config, name)
        expect(name, _numbers(low_high, 2) and 0 < low_high[0] <= low_high[1],
               "two rising numbers above 0")  # fmt: skip
    for name in ("augment.crop.min_ious", "anchors.scales", "optimizer.decay_epochs"):
        expect(name, _numbers(_get(config, name)) and all(x >= 0 for x in _get(config, name)),
               "numbers of at least 0")  # fmt: skip
    decays = config.optimizer.decay_epochs
    expect("optimizer.decay_epochs", list(decays) == sorted(decays), "rising epochs")
    names = ["data.classes", *(f"data.{split}.image_sets" for split in ("train", "val", "test"))]
    for name in names:
        value = _get(config, name)
        expect(name, all(isinstance(each, str) for each in value) and len(set(value)) == len(value),
               "names, each once")  # fmt: skip


def _numbers(values: tuple, count: int | None = None) -> bool:
    return count in (None, len(values)) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


def save_config(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the resolved config as JSON."""
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(path: pathlib.Path) -> ConfigDict:
    """Reads what `save_config` wrote."""
    if not path.is_file():
        raise UserError(
            f"{path.parent}: no {path.name} there. Give the --workdir of a run that "
            "`ssd-jax train` has started."
        )
    config = default_config()
    try:
        config.update_from_flattened_dict(dict(_flatten(json.loads(path.read_text()))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: it is damaged or of another version ({str(error).splitlines()[0]}). Give the "
            "--workdir of another run."
        ) from error
    return config


def flat_items(config: ConfigDict) -> Iterator[tuple[str, object]]:
    """All settings with dotted names, in the order of the defaults."""
    return _flatten(config.to_dict())


def _flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _tuples(value)


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _get(config: ConfigDict, name: str) -> object:
    for part in name.split("."):
        config = config[part]
    return config


def split_assignments(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Turns `--config.a.b=1` or `--config.a.b 1` into `("a.b", "1")`; refuses all else."""
    found, rest = [], list(arguments)
    while rest:
        head = rest.pop(0)
        match = re.fullmatch(r"--config\.([\w.]+)(?:=(.*))?", head, re.DOTALL)
        if not match:
            raise UserError(f"{head}: not understood. Settings are given as --config.NAME=VALUE.")
        name, text = match.groups()
        if text is None:
            if not rest:
                raise UserError(f"{head}: a value is missing. Write {head}=VALUE.")
            text = rest.pop(0)
        found.append((name, text))
    return found
