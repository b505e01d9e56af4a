"""The settings of an experiment: defaults, files, and overrides from the command line.

A run's parts are put together from them in `network.py` and `experiment.py`; below these nothing
reads a config.
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
from ssd_jax.errors import UserError, first_line
from ssd_jax.files import write_json
from ssd_jax.literals import KINDS, read_value, with_home

# In the folder of a run.
CONFIG_FILE = "config.json"
STARTS_FILE = "starts.jsonl"
NAMES = (
    "data.classes", "weights.reinitialise", "data.train.image_sets", "data.val.image_sets",
    "data.test.image_sets",
)  # fmt: skip
PLACES = {"data.train.root", "data.val.root", "data.test.root", "weights.path"}
# Settings that had another name in a release: the old name -> the present one.
RENAMED: dict[str, str] = {}
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def default_config() -> ConfigDict:
    """The SSD of the paper (https://arxiv.org/abs/1512.02325) with VGG16 at 300 px.

    `recipes.py` has what the recipes "sagemaker" and "best" change.
    """
    config = ConfigDict()
    config.recipe = "paper"  # paper | sagemaker | best: what the algorithm is compared with
    config.seed = 0
    config.batch_size = 32
    config.epochs = placeholder(float)  # exactly one of epochs and steps is set
    config.steps = placeholder(int)
    config.log_every_steps = 10
    config.sharding = "replicated"  # replicated | fsdp: the state whole on each device, or cut
    config.model = {
        "backbone": "vgg16",  # vgg16 | resnet50 (v1.5), _v1, _v2 | small | package.module:Class
        "extras": "paper",  # paper | mxnet: the layers behind the backbone
        "image_size": 300,  # px; the network's square input
        "width": 1.0,  # multiplies every channel count
        "fpn_channels": 0,  # of a feature pyramid over the maps, see models/fpn.py; 0 = none
        "class_activation": "softmax",  # softmax | sigmoid, which the class loss decides
        "first_stage": placeholder(int),  # of a ResNet: the finest stage that is detected on
        "dtype": "float32",  # of the computation: float32 | bfloat16; parameters are float32
        "batch_norm": "none",  # none | frozen | batch; a ResNet needs one of the latter two
        "batch_norm_group": 0,  # images that share their statistics; 0 = the whole batch
        "batch_norm_epsilon": 1e-5,
        "batch_norm_momentum": 0.9,  # the part that the running statistics keep in a step
        "l2_epsilon": 1e-10,  # vgg16: of the L2 normalisation of conv4_3
    }
    config.anchors = {
        "layout": "paper",  # paper | gluoncv | mxnet | mxnet_legacy: whose scales
        "scales": (),  # or one's own, as parts of the image side, one more than there are maps
    }
    config.weights = {
        "path": "",  # what to begin with, see docs/weights.md; "" = from scratch
        "reinitialise": (),  # what may be of another shape there, as ("params/heads/*",)
    }
    split = {
        "root": "",  # a data set of any format, see docs/data.md; several as "A + B"
        "image_sets": (),  # its splits; of VOC as "VOC2007/trainval", or "train" without years
    }
    config.data = {
        "train": dict(split),
        "val": dict(split),  # evaluated during training; may choose the best checkpoint
        "test": dict(split),  # evaluated once, at the end; root "" = there is none
        "classes": (),  # names in the order of their ids; () = found in the training split
        "problems": "error",  # error | skip, for records and boxes that cannot be used
        "canvas": 512,  # px; larger pictures are scaled down to fit when they are decoded
        "doctor": True,  # look at every image once before the run; remembered for the next one
        "label_width": placeholder(int),  # of record files: refuse wider labels
        "cache": "none",  # none | ram | device: keep the decoded pictures
        "threads": placeholder(int),  # that decode; None = the cores, up to 16 a device
    }
    config.augment = {  # see ops/augment.py for what each word does
        "image_sizes": (),  # px; each step trains at one of them; () = model.image_size
        "flip": 0.5,  # probability
        "flip_vertical": 0.0,
        "interpolations": ("linear",),  # of nearest, linear, cubic, area, lanczos4; one by chance
        "exact_boxes": True,  # False: up to a pixel off, as the references round
        "distort": {  # probability 0 = none
            "probability": 0.5,
            "brightness": 32.0,
            "contrast": (0.5, 1.5),
            "saturation": (0.5, 1.5),
            "hue": 18.0,
        },
        "jitter": {  # in HLS, as mxnet-ssd; probability 0 = none
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
            "fill": (),  # RGB of what is uncovered; () = preprocess.mean
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
        "empty_is_negative": True,  # False: images without objects are not learned from
    }
    config.loss = {
        "class_loss": "softmax",  # softmax | focal | quality_focal | varifocal, see ops/losses.py
        "box_loss": "smooth_l1",  # smooth_l1 | giou | diou | ciou, see ops/box_losses.py
        "label_smoothing": 0.0,  # softmax only
        "focal_alpha": 0.25,  # focal, varifocal (there 0.75)
        "focal_gamma": 2.0,  # all but softmax
        "negatives_per_positive": 3,
        "minimum_negatives": 3,  # also in an image without objects
        "box_weight": 1.0,
        "normalization": "positives",  # positives | valid: what the losses are divided by
        "group": 0,  # images that are counted together; 0 = the whole batch
    }
    config.optimizer = {
        "name": "sgd",  # sgd | adamw | adam | rmsprop | adadelta (the last three as in MXNet)
        "learning_rate": 1e-3,  # the highest
        "momentum": 0.9,  # sgd only
        "learning_rate_in_momentum": False,  # sgd only
        "weight_decay": 5e-4,
        # (glob on a parameter's path, factor) pairs; the last match wins, without one it is 1
        "rate_multipliers": (),  # of the learning rate; 0 freezes
        "decay_multipliers": (("*", 0.0), ("*/kernel", 1.0)),  # of weight_decay
        "clip_norm": placeholder(float),  # largest global norm of the gradient
        "gradient_scale": 1.0,  # multiplies the gradient, ahead of the clipping
        "schedule": "step",  # step | cosine | one_cycle
        # step: learning rate times decay_factor after these; None = after 2/3 and 5/6 of the run
        "decay_epochs": placeholder(tuple),
        "steps_per_epoch": placeholder(int),  # of decay_epochs; None = images / batch_size
        "decay_factor": 0.1,
        "warmup_steps": 0,  # step, cosine: linear from 0
        "ema_decay": 0.0,  # of a moving average of the weights, which then is measured; 0 = none
    }
    config.detect = {
        "score_threshold": 0.01,
        "iou_threshold": 0.45,
        "strict": True,  # False: reaching a threshold is enough
        "class_per_anchor": "all",  # all | best
        "force_suppress": False,  # with best: boxes of any class suppress each other
        "candidates": 400,  # a class; with best in all
        "max_detections": 200,
        "nms": "hard",  # hard | linear | gaussian: the latter two lower scores, see ops/nms.py
        "soft_nms_sigma": 0.5,  # gaussian only
        "flip": False,  # True: look at the mirrored image too, in twice the time
        "image_sizes": (),  # px; look at each image in all of them; () = model.image_size
        "clip": True,  # boxes to the image
    }
    config.evaluate = {
        "every_epochs": placeholder(float),  # neither = only at the end
        "every_steps": placeholder(int),
        "batch_size": 32,
        "metric": "voc07",  # voc07 | voc12 | mxnet | coco: the mAP that chooses the best checkpoint
        "iou_threshold": 0.5,
    }
    config.checkpoint = {
        "every_steps": 1000,  # and after each evaluation
        "keep_latest": 2,
        "select": "last",  # last | best: what the end of a run, evaluate and predict use
    }
    config.early_stopping = {
        "enabled": False,  # True: end the run when evaluate.metric stands still
        "minimum_epochs": 10.0,  # never end it before
        "patience": 5,  # evaluations without an improvement
        "tolerance": 0.0,  # what counts as one: more than this part of the best
    }
    config.watchdog = {  # see docs/reliability.md
        "factor": 20.0,  # times the median of a step, then the run ends as stalled; 0 = never
        "minimum_seconds": 300.0,  # but never sooner
        "first_seconds": 3600.0,  # for the first steps, which compile
    }
    return config.lock()


def load_config(path: str | pathlib.Path) -> ConfigDict:
    """The config of a file: `FILE.py`, `FILE.py:variant`, or the config.json of a run.

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
            raise UserError("no get_config() there, which gives the settings. See configs/bccd.py.")
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:
        raise UserError(f"config {path}: {_told(error, spec.origin)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config gave {config!r}, expected a ConfigDict.")
    return config


def _told(error: Exception, file: str) -> str:
    """What went wrong in the code of a config, with the line of the file."""
    frames = list(traceback.walk_tb(error.__traceback__))
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    if isinstance(error, SyntaxError) and error.filename == file:
        lines.append(error.lineno)
    where = f"line {lines[-1]}: " if lines else ""
    if isinstance(error, UserError):
        return f"{where}{error}"
    # ConfigDict says neither which group it is, nor the nearest name of a group.
    group = frames[-1][0].f_locals.get("self")
    key = re.match(r"""(?:\W*Key )?\W*["'](\w+)\W?["']""", str(error))
    if isinstance(group, ConfigDict) and isinstance(error, AttributeError | KeyError) and key:
        names = sorted(group)
        near = difflib.get_close_matches(key[1], names, n=1)
        expected = f"the nearest is {near[0]}" if near else f"expected one of {', '.join(names)}"
        return f"{where}no setting {key[1]} there; {expected}."
    return f"{where}{type(error).__name__}: {getattr(error, 'msg', error)}."


def override(config: ConfigDict, assignments: Sequence[tuple[str, str]]) -> None:
    """Sets `("optimizer.learning_rate", "3e-4")` and the like, in place, keeping types.

    A `~` ahead of a place, also of one that the config had, becomes the home folder.
    """
    known = dict(flat_items(config))
    for name, text in assignments:
        if name == "recipe":
            raise UserError(
                "--config.recipe: a recipe is all settings of a config together. Take a config "
                "that begins with it, as configs/voc0712_sagemaker_512.py does."
            )
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
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
    """What a setting may be, also where it is None."""
    section, _, last = name.rpartition(".")
    return (get(config, section) if section else config).get_type(last)


def save_config(config: ConfigDict, path: str | pathlib.Path) -> None:
    """Writes the resolved config as JSON; the file is there whole or not at all."""
    write_json(path, config.to_dict())


def read_config(path: str | pathlib.Path) -> ConfigDict:
    """Reads what `save_config` wrote; what came into being since has its default."""
    path = pathlib.Path(path)
    settings, config = stored_settings(path), default_config()
    if unknown := sorted(settings.keys() - dict(flat_items(config)).keys()):
        raise UserError(
            f"{path}: ssd_jax {__version__} has no setting {', '.join(unknown)}. The run is of "
            f"{_started_with(path.parent)}: go back to that. "
            f"`ssd-jax report page --workdir {path.parent}` shows it anyway."
        )
    try:
        config.update_from_flattened_dict(settings)
    except (ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    return config


def stored_settings(path: pathlib.Path) -> dict[str, object]:
    """The settings in a file by their present names, unknown ones too."""
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no {path.name}. Give the --workdir of a run that "
            "`ssd-jax train` has started."
        )
    try:
        items = _flatten(json.loads(path.read_text(encoding="utf-8")))
        return {RENAMED.get(name, name): value for name, value in items}
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"{path}: it is damaged ({reason}). Give the --workdir of another run.")


def _started_with(folder: pathlib.Path) -> str:
    """The version, with the commit where it is known, that last started the run in a folder."""
    try:
        start = json.loads((folder / STARTS_FILE).read_text(encoding="utf-8").splitlines()[-1])
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
    """The setting of a dotted name."""
    return operator.attrgetter(name)(config)


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
