"""The settings of an experiment: defaults, files, and overrides from the command line.

`network.py` and `experiment.py` build the parts of a run from them; the layers below do not read a
config.
"""

import difflib
import importlib.util
import json
import operator
import pathlib
import re
import traceback
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from ssd_jax import __version__
from ssd_jax.errors import UserError, first_line, nearest
from ssd_jax.files import write_json
from ssd_jax.literals import KINDS, read_value, with_home

# Files in the folder of a run.
CONFIG_FILE = "config.json"
STARTS_FILE = "starts.jsonl"
NAMES = (
    "data.classes", "weights.reinitialise", "data.train.image_sets", "data.val.image_sets",
    "data.test.image_sets",
)  # fmt: skip
PLACES = {"data.train.root", "data.val.root", "data.test.root", "weights.path"}
# Settings that had another name in a release: the old name -> the current one.
RENAMED: dict[str, str] = {}
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def default_config() -> ConfigDict:
    """The SSD of the paper (https://arxiv.org/abs/1512.02325) with VGG16 at 300 px.

    `recipes.py` has the changes that the recipes "sagemaker" and "best" make.
    """
    config = ConfigDict()
    config.recipe = "paper"  # paper | sagemaker | best: the algorithm that a run is compared with
    config.seed = 0
    config.batch_size = 32
    config.epochs = placeholder(float)  # set exactly one of epochs and steps
    config.steps = placeholder(int)
    config.log_every_steps = 10
    config.sharding = "replicated"  # replicated | fsdp: state copied to each device, or sharded
    config.model = {
        "backbone": "vgg16",  # vgg16 | resnet50 (v1.5), _v1, _v2 | small | package.module:Class
        "extras": "paper",  # paper | mxnet: the layers after the backbone
        "image_size": 300,  # px; the side of the network's square input
        "width": 1.0,  # multiplies every channel count
        "fpn_channels": 0,  # channels of a feature pyramid, see models/fpn.py; 0 = none
        "class_activation": "softmax",  # softmax | sigmoid, as loss.class_loss requires
        "first_stage": placeholder(int),  # ResNet: the first (finest) stage with detections
        "dtype": "float32",  # float32 | bfloat16, for computing; parameters are float32
        "batch_norm": "none",  # none | frozen | batch; a ResNet needs one of the latter two
        "batch_norm_group": 0,  # images that share statistics; 0 = the whole batch
        "batch_norm_epsilon": 1e-5,
        "batch_norm_momentum": 0.9,  # fraction of the running statistics that a step keeps
        "l2_epsilon": 1e-10,  # vgg16: for the L2 normalisation of conv4_3
    }
    config.anchors = {
        "layout": "paper",  # paper | gluoncv | mxnet | mxnet_legacy: whose scales to use
        "scales": (),  # or your own, as fractions of the image side, one more than feature maps
    }
    config.weights = {
        "path": "",  # initial weights, see docs/weights.md; "" = from scratch
        "reinitialise": (),  # parameters that may differ in shape, e.g. ("params/heads/*",)
    }
    split = {
        "root": "",  # a data set of any format, see docs/data.md; several: "A + B"
        "image_sets": (),  # its splits; for VOC "VOC2007/trainval", or "train" without years
    }
    config.data = {
        "train": dict(split),
        "val": dict(split),  # evaluated during training; may choose the best checkpoint
        "test": dict(split),  # evaluated once, at the end; root "" = none
        "classes": (),  # names in the order of their ids; () = those in the training split
        "problems": "error",  # error | skip, for records and boxes that cannot be used
        "canvas": 512,  # px; larger images are scaled down to this side when decoded
        "doctor": True,  # check every image once before training; the result is kept
        "label_width": placeholder(int),  # RecordIO: refuse wider labels
        "cache": "none",  # none | ram | device: where to keep decoded images
        "threads": placeholder(int),  # for decoding; None = one per core, at most 16 per device
    }
    config.augment = {  # ops/augment.py explains each setting
        "image_sizes": (),  # px; each step trains at one of them; () = model.image_size
        "flip": 0.5,  # probability
        "flip_vertical": 0.0,
        "interpolations": ("linear",),  # drawn from: nearest, linear, cubic, area, lanczos4
        "exact_boxes": True,  # False: up to a pixel off, rounded as in the original algorithms
        "distort": {  # probability 0 = none
            "probability": 0.5,
            "brightness": 32.0,
            "contrast": (0.5, 1.5),
            "saturation": (0.5, 1.5),
            "hue": 18.0,
        },
        "jitter": {  # in HLS, as in mxnet-ssd; probability 0 = none
            "probability": 0.0,
            "hue": 18.0,
            "lightness": 32.0,
            "saturation": 32.0,
            "contrast": 0.5,
        },
        "expand": {  # probability 0 = none
            "probability": 0.5,
            "scale": (1.0, 4.0),
            "minimum": 1.0,
            "fill": (),  # RGB of the area around the image; () = preprocess.mean
        },
        "crop": {  # min_ious () = none
            "min_ious": (0.1, 0.3, 0.5, 0.7, 0.9, 0.0),
            "trials": 50,
            "scale": (0.3, 1.0),
            "aspect": (0.5, 2.0),
            "probability": 1.0,
            "choice": "even",  # even | first
            "iou_binds": True,
        },
        "mosaic": {  # of four consecutive images; probability 0 = none
            "probability": 0.0,
            "scale": (1.0, 2.0),
            "until": 1.0,  # fraction of the run; then none
        },
    }
    config.preprocess = {
        "mean": (123.675, 116.28, 103.53),  # RGB, ImageNet
        "std": (1.0, 1.0, 1.0),
    }
    config.match = {
        "iou_threshold": 0.5,
        "strict": False,  # True: the IoU must exceed the threshold
        "negative_iou_threshold": placeholder(float),  # None = iou_threshold
        "empty_is_negative": True,  # False: images without objects do not contribute
    }
    config.loss = {
        "class_loss": "softmax",  # softmax | focal | quality_focal | varifocal, see ops/losses.py
        "box_loss": "smooth_l1",  # smooth_l1 | giou | diou | ciou, see ops/box_losses.py
        "label_smoothing": 0.0,  # softmax only
        "focal_alpha": 0.25,  # focal, varifocal (there 0.75)
        "focal_gamma": 2.0,  # all except softmax
        "negatives_per_positive": 3,
        "minimum_negatives": 3,  # also in an image without objects
        "box_weight": 1.0,
        "normalization": "positives",  # positives | valid: the count that divides the losses
        "group": 0,  # images whose counts are added; 0 = the whole batch
    }
    config.optimizer = {
        "name": "sgd",  # sgd | adamw | adam | rmsprop | adadelta (the last three as in MXNet)
        "learning_rate": 1e-3,  # the maximum of the schedule
        "momentum": 0.9,  # sgd only
        "learning_rate_in_momentum": False,  # sgd only
        "weight_decay": 5e-4,
        # pairs (glob on a parameter's path, factor); the last match counts, without one it is 1
        "rate_multipliers": (),  # of the learning rate; 0 freezes
        "decay_multipliers": (("*", 0.0), ("*/kernel", 1.0)),  # of weight_decay
        "clip_norm": placeholder(float),  # largest global norm of the gradient
        "gradient_scale": 1.0,  # multiplies the gradient before clipping
        "schedule": "step",  # step | cosine | one_cycle
        # step: multiply the learning rate by decay_factor after these epochs;
        # None = after 2/3 and 5/6 of the run
        "decay_epochs": placeholder(tuple),
        "steps_per_epoch": placeholder(int),  # for decay_epochs; None = images / batch_size
        "decay_factor": 0.1,
        "warmup_steps": 0,  # step, cosine: linear from 0
        "ema_decay": 0.0,  # of an EMA of the weights, which is then evaluated; 0 = none
    }
    config.detect = {
        "score_threshold": 0.01,
        "iou_threshold": 0.45,
        "strict": True,  # False: reaching a threshold is enough
        "class_per_anchor": "all",  # all | best
        "force_suppress": False,  # with best: NMS across classes
        "candidates": 400,  # per class; with best in total
        "max_detections": 200,
        "nms": "hard",  # hard | linear | gaussian; the latter two are Soft-NMS, see ops/nms.py
        "soft_nms_sigma": 0.5,  # gaussian only
        "flip": False,  # True: detect in the mirrored image too, which takes twice the time
        "image_sizes": (),  # px; detect at all of these sizes; () = model.image_size
        "clip": True,  # clip boxes to the image
    }
    config.evaluate = {
        "every_epochs": placeholder(float),  # None for both = only at the end
        "every_steps": placeholder(int),
        "batch_size": 32,
        "metric": "voc07",  # voc07 | voc12 | mxnet | coco: the mAP that selects the best checkpoint
        "iou_threshold": 0.5,
    }
    config.checkpoint = {
        "every_steps": 1000,  # also after each evaluation
        "keep_latest": 2,
        "select": "last",  # last | best: used at the end of a run, by evaluate and by predict
    }
    config.early_stopping = {
        "enabled": False,  # True: end the run when evaluate.metric stops improving
        "minimum_epochs": 10.0,  # never end before
        "minimum_steps": placeholder(int),  # the same in steps; None = by minimum_epochs
        "patience": 5,  # evaluations without an improvement
        "tolerance": 0.0,  # an improvement is more than this fraction of the best value
    }
    config.watchdog = {  # see docs/reliability.md
        "factor": 20.0,  # a step of this many medians ends the run as stalled; 0 = never
        "minimum_seconds": 300.0,  # a step may always take this long
        "first_seconds": 3600.0,  # for the first steps, which compile
    }
    return config.lock()


def load_config(path: str | pathlib.Path) -> ConfigDict:
    """Load a config from `FILE.py`, `FILE.py:variant`, or the config.json of a run.

    A Python file has `get_config()`, which may take the variant.
    """
    path = with_home(str(path))
    if path.endswith(".json"):
        return read_config(path)
    name, _, variant = path.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        seen_from = "" if file.is_absolute() else f" in {pathlib.Path.cwd()}"
        raise UserError(
            f"config {name}: no such file{seen_from}. Give the path of a config, for example one "
            "in configs/."
        )
    spec = importlib.util.spec_from_file_location(f"ssd_jax_config_{file.stem}", file)
    if spec is None:
        raise UserError(f"config {name}: not a Python file. Give the path of a config.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(
                "it has no get_config(), which returns the settings. See configs/bccd.py."
            )
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:
        raise UserError(f"config {path}: {_told(error, spec.origin)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config returned {config!r}, expected a ConfigDict.")
    return config


def _told(error: Exception, file: str) -> str:
    """A message about an error in the code of a config, with the line of the file."""
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    where = f"line {lines[-1]}: " if lines else ""
    if isinstance(error, UserError):
        return f"{where}{error}"
    # The error of ConfigDict names neither the group nor the nearest name in it.
    group = frames[-1][0].f_locals.get("self")
    key = re.match(r"""(?:\W*Key )?\W*["'](\w+)\W?["']""", str(error))
    if isinstance(group, ConfigDict) and isinstance(error, AttributeError | KeyError) and key:
        names = sorted(group)
        near = difflib.get_close_matches(key[1], names, n=1)
        expected = f"the nearest is {near[0]}" if near else f"expected one of {', '.join(names)}"
        return f"{where}no setting {key[1]} there; {expected}."
    return f"{where}{type(error).__name__}: {getattr(error, 'msg', error)}."


def override(config: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Apply assignments such as `("optimizer.learning_rate", "3e-4")` in place, keeping types.

    A `~` at the start of a path, also of a path already in the config, becomes the home folder.
    """
    known = dict(flat_items(config))
    for name, text in assignments:
        if name == "recipe":
            raise UserError(
                "--config.recipe: a recipe is a whole set of settings. Use a config that starts "
                "from it, such as configs/voc0712_sagemaker_512.py."
            )
        if name not in known:
            near = nearest(name, known)
            raise UserError(f"--config.{name}: no such setting. The nearest is --config.{near}.")
        kind = _kind(config, name)
        try:
            value = read_value(text, kind, names=name in NAMES)
            config.update_from_flattened_dict({name: value})
        except TypeError:
            raise UserError(f"--config.{name}: got {text!r}, expected {KINDS[kind]}.") from None
    for name in PLACES & known.keys():
        if place := get(config, name):
            config.update_from_flattened_dict({name: with_home(place)})


def _kind(config: ConfigDict, name: str) -> type:
    """The type of a setting, even if its value is None."""
    section, _, last = name.rpartition(".")
    return (get(config, section) if section else config).get_type(last)


def save_config(config: ConfigDict, path: str | pathlib.Path) -> None:
    """Write the resolved config as JSON; an interrupted write leaves no file."""
    write_json(path, config.to_dict())


def read_config(path: str | pathlib.Path) -> ConfigDict:
    """Read the file of `save_config`; settings that were added since get their defaults."""
    path = pathlib.Path(path)
    settings, config = stored_settings(path), default_config()
    if unknown := sorted(settings.keys() - dict(flat_items(config)).keys()):
        raise UserError(
            f"{path}: ssd_jax {__version__} has no setting {', '.join(unknown)}. The run was "
            f"started with {_started_with(path.parent)}: use that. "
            f"`ssd-jax report page --workdir {path.parent}` shows the run anyway."
        )
    try:
        config.update_from_flattened_dict(settings)
    except (ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, error) from error
    return config


def stored_settings(path: pathlib.Path) -> dict[str, object]:
    """The settings in a file under their current names, including unknown ones."""
    if not path.is_file():
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such folder. Give the folder of a run.")
        raise UserError(
            f"{path.parent} has no {path.name}. Give the folder of a run that `ssd-jax train` "
            "started."
        )
    try:
        items = _flatten(json.loads(path.read_text(encoding="utf-8")))
        return {RENAMED.get(name, name): value for name, value in items}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"{path}: the file is damaged ({reason}). Give the --workdir of another run.")


def _started_with(folder: pathlib.Path) -> str:
    """The version, with the commit if known, that last started the run in a folder."""
    try:
        start = json.loads((folder / STARTS_FILE).read_text(encoding="utf-8").split("\n")[-2])
        version = f"ssd_jax {start['environment']['ssd_jax']}"
        return f"{version} at commit {start['code']['commit']}" if start["code"] else version
    except (OSError, ValueError, LookupError, TypeError):
        return "another version"


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


def get(config: ConfigDict, name: str) -> object:
    """The value of the setting with a dotted name."""
    return operator.attrgetter(name)(config)


def split_assignments(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Turn `--config.a.b=1` or `--config.a.b 1` into `("a.b", "1")`; refuse anything else."""
    found, rest = [], list(arguments)
    while rest:
        head = rest.pop(0)
        match = re.fullmatch(r"--config\.([\w.]+)(?:=(.*))?", head, re.DOTALL)
        if not match:
            raise UserError(f"{head}: not understood. Give settings as --config.NAME=VALUE.")
        name, text = match.groups()
        if text is None:
            if not rest:
                raise UserError(f"{head}: the value is missing. Write {head}=VALUE.")
            text = rest.pop(0)
        found.append((name, text))
    return found
