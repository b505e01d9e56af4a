"""Checks of the values of all settings, before anything is built."""

import math

from ml_collections import ConfigDict

from ssd_jax.config import NAMES, default_config, flat_items, get
from ssd_jax.errors import UserError, nearest
from ssd_jax.models.own import EXPECTED, is_own
from ssd_jax.recipes import RESNETS, recipe_config

# Copies of what other files allow, because importing those files would import JAX. A test compares
# them.
CHOICES = {
    "recipe": ("paper", "sagemaker", "best"),
    "sharding": ("replicated", "fsdp"),
    "model.backbone": ("vgg16", *RESNETS, "small"),
    "model.extras": ("paper", "mxnet"),
    "model.class_activation": ("softmax", "sigmoid"),
    "model.dtype": ("float32", "bfloat16"),
    "model.batch_norm": ("none", "frozen", "batch"),
    "anchors.layout": ("paper", "gluoncv", "mxnet", "mxnet_legacy"),
    "data.problems": ("error", "skip"),
    "data.cache": ("none", "ram", "device"),
    "augment.crop.choice": ("even", "first"),
    "loss.class_loss": ("softmax", "focal", "quality_focal", "varifocal"),
    "loss.box_loss": ("smooth_l1", "giou", "diou", "ciou"),
    "loss.normalization": ("positives", "valid"),
    "optimizer.name": ("sgd", "adamw", "adam", "rmsprop", "adadelta"),
    "optimizer.schedule": ("step", "cosine", "one_cycle"),
    "detect.class_per_anchor": ("all", "best"),
    "detect.nms": ("hard", "linear", "gaussian"),
    "evaluate.metric": ("voc07", "voc12", "mxnet", "coco"),
    "checkpoint.select": ("last", "best"),
}
INTERPOLATIONS = ("nearest", "linear", "cubic", "area", "lanczos4")
SMALLEST_IMAGE = 64  # px
LARGEST_NUMBER = 2**31 - 1  # devices compute with int32

# These checks let None pass: `_check_complete` refuses it for settings that need a value.
_FRACTIONS = (
    "augment.flip", "augment.flip_vertical", "augment.distort.probability",
    "augment.jitter.probability", "augment.jitter.contrast", "augment.expand.probability",
    "augment.crop.probability", "augment.mosaic.probability", "augment.mosaic.until",
    "match.iou_threshold", "match.negative_iou_threshold", "loss.label_smoothing",
    "loss.focal_alpha", "optimizer.momentum", "detect.iou_threshold",
    "detect.score_threshold", "evaluate.iou_threshold",
)  # fmt: skip
_AT_LEAST = {
    SMALLEST_IMAGE: ("model.image_size",),
    1: (
        "batch_size", "steps", "log_every_steps", "data.canvas", "data.label_width",
        "augment.crop.trials", "optimizer.steps_per_epoch", "detect.candidates",
        "detect.max_detections", "evaluate.every_steps", "evaluate.batch_size",
        "checkpoint.every_steps", "checkpoint.keep_latest", "early_stopping.patience",
    ),
    0: (
        "model.fpn_channels", "model.batch_norm_group", "data.threads",
        "augment.distort.brightness", "augment.distort.hue", "augment.jitter.hue",
        "augment.jitter.lightness", "augment.jitter.saturation", "loss.negatives_per_positive",
        "loss.minimum_negatives", "loss.box_weight", "loss.group", "loss.focal_gamma",
        "optimizer.weight_decay", "optimizer.warmup_steps", "early_stopping.minimum_epochs",
        "early_stopping.minimum_steps", "seed",
        "early_stopping.tolerance", "watchdog.factor",
    ),
}  # fmt: skip
_AT_MOST = {
    180: ("augment.distort.hue", "augment.jitter.hue"),  # degrees
    LARGEST_NUMBER: (
        "seed", "steps", "epochs", "batch_size", "optimizer.warmup_steps",
        "loss.negatives_per_positive", "loss.minimum_negatives", "early_stopping.minimum_epochs",
    ),
}  # fmt: skip
_POSITIVE = (
    "epochs", "model.width", "model.batch_norm_epsilon", "model.l2_epsilon",
    "optimizer.learning_rate", "optimizer.clip_norm", "optimizer.gradient_scale",
    "optimizer.decay_factor", "detect.soft_nms_sigma", "evaluate.every_epochs",
    "evaluate.iou_threshold", "watchdog.minimum_seconds", "watchdog.first_seconds",
)  # fmt: skip
_RANGES = (
    "augment.distort.contrast", "augment.distort.saturation", "augment.expand.scale",
    "augment.crop.scale", "augment.crop.aspect",
)  # fmt: skip
_IMAGE_SIZES = ("augment.image_sizes", "detect.image_sizes")


def check(config: ConfigDict) -> None:
    """Raise a `UserError` for the first value that no run could use; reads no files."""
    _check_complete(config)
    for name, choices in CHOICES.items():
        value = get(config, name)
        if value not in choices and not (name == "model.backbone" and is_own(value)):
            near = nearest(str(value), choices)
            own = f", or {EXPECTED}" if name == "model.backbone" else ""
            _expect(config, name, False, f"one of {', '.join(choices)}; the nearest is {near}{own}")
    recipe_config(config.recipe, config.model.backbone)
    _check_numbers(config)
    _check_tuples(config)
    _check_combinations(config)


def _expect(config: ConfigDict, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise UserError(f"config.{name}: got {get(config, name)!r}, expected {expected}.")


def _check_complete(config: ConfigDict) -> None:
    defaults, given = (dict(flat_items(each)) for each in (default_config(), config))
    for name in sorted(defaults.keys() - given.keys()):
        raise UserError(
            f"config.{name}: the setting is missing. Change the settings of a group one by one, or "
            f"with config.{name.rpartition('.')[0]}.update({{...}})."
        )
    for name in sorted(given.keys() - defaults.keys()):
        raise UserError(
            f"config.{name}: there is no such setting. The nearest is "
            f"config.{nearest(name, defaults)}."
        )
    for name, value in given.items():
        _expect(config, name, value is not None or defaults[name] is None, "a value")


def _check_numbers(config: ConfigDict) -> None:
    for name, value in flat_items(config):
        _expect(config, name, not isinstance(value, float) or math.isfinite(value),
                "a finite number")  # fmt: skip
    rules = [
        (_FRACTIONS, lambda x: 0 <= x <= 1, "a number from 0 to 1"),
        (_POSITIVE, lambda x: x > 0, "more than 0"),
    ]
    rules += [(of, lambda x, n=n: x >= n, f"at least {n}") for n, of in _AT_LEAST.items()]
    rules += [(of, lambda x, n=n: x <= n, f"at most {n}") for n, of in _AT_MOST.items()]
    for names, holds, expected in rules:
        for name in names:
            value = get(config, name)
            _expect(config, name, value is None or holds(value), expected)
    for name in ("optimizer.ema_decay", "model.batch_norm_momentum"):  # 1 would never move
        _expect(config, name, 0 <= get(config, name) < 1, "at least 0, less than 1")


def _check_tuples(config: ConfigDict) -> None:
    def each(names: tuple[str, ...], holds, expected: str) -> None:
        for name in names:
            _expect(config, name, holds(get(config, name)), expected)

    each(_IMAGE_SIZES,
         lambda sizes: all(type(size) is int and size >= SMALLEST_IMAGE for size in sizes)
         and _each_once(sizes),
         f"whole pixels, at least {SMALLEST_IMAGE}, each size once")  # fmt: skip
    each(_RANGES, lambda pair: _numbers(pair, 2) and 0 < pair[0] <= pair[1],
         "two increasing numbers above 0")  # fmt: skip
    each(("augment.mosaic.scale",), lambda pair: _numbers(pair, 2) and 1 <= pair[0] <= pair[1] <= 2,
         "two increasing numbers from 1 to 2")  # fmt: skip
    each(("preprocess.mean", "preprocess.std"), lambda values: _numbers(values, 3),
         "three numbers, one per channel (RGB)")  # fmt: skip
    each(("preprocess.std",), lambda values: 0 not in values, "numbers that are not 0")
    each(("augment.expand.fill",), lambda fill: fill == () or _numbers(fill, 3),
         "three numbers (RGB) or ()")  # fmt: skip
    each(("augment.interpolations",),
         lambda names: names and all(name in INTERPOLATIONS for name in names),
         f"one or more of {', '.join(INTERPOLATIONS)}")  # fmt: skip
    each(("optimizer.rate_multipliers", "optimizer.decay_multipliers"),
         lambda pairs: all(isinstance(pair, tuple | list) and len(pair) == 2 and _numbers(pair[1:])
                           and isinstance(pair[0], str) for pair in pairs),
         "pairs of a pattern and a factor, e.g. ((\"*/bias\", 2.0),)")  # fmt: skip
    decays = ("optimizer.decay_epochs",) if config.optimizer.decay_epochs is not None else ()
    each(("anchors.scales",), lambda values: _numbers(values) and all(x > 0 for x in values),
         "numbers above 0")  # fmt: skip
    each(("augment.crop.min_ious",),
         lambda values: _numbers(values) and all(0 <= x <= 1 for x in values),
         "numbers from 0 to 1")  # fmt: skip
    each(decays, lambda values: _numbers(values) and all(x >= 0 for x in values),
         "numbers of at least 0")  # fmt: skip
    each(decays, lambda epochs: list(epochs) == sorted(epochs), "increasing epochs")
    each(NAMES, lambda names: all(isinstance(x, str) for x in names) and _each_once(names),
         "names, each once")  # fmt: skip
    each(NAMES, lambda names: all(name.strip() for name in names), "names that are not empty")


def _check_combinations(config: ConfigDict) -> None:
    def expect(name: str, holds: bool, expected: str) -> None:
        _expect(config, name, holds, expected)

    steps, epochs = config.steps, config.epochs
    if (steps is None) == (epochs is None):
        raise UserError(
            f"config.steps: got {steps!r}, and config.epochs: got {epochs!r}, expected exactly one "
            "of the two. "
            + (
                "Give one, e.g. --config.epochs=100."
                if steps is None
                else f"For {steps} steps add --config.epochs=None, for {epochs:g} epochs "
                "--config.steps=None."
            )
        )
    expect("optimizer.warmup_steps", steps is None or config.optimizer.schedule != "cosine"
           or config.optimizer.warmup_steps <= steps,
           f"at most the {steps} steps of the run")  # fmt: skip
    evaluations = (config.evaluate.every_steps, config.evaluate.every_epochs)
    expect("evaluate.every_steps", None in evaluations,
           "at most one of every_steps and every_epochs")  # fmt: skip
    expect("early_stopping.enabled",
           not config.early_stopping.enabled or evaluations != (None, None),
           "False, or evaluations to decide by: set evaluate.every_epochs")  # fmt: skip
    expect("model.batch_norm", config.model.backbone not in RESNETS
           or config.model.batch_norm != "none",
           "frozen or batch: a resnet50 has batch normalisation")  # fmt: skip
    for name in ("model.batch_norm_group", "loss.group"):
        group = get(config, name)
        expect(name, group == 0 or config.batch_size % group == 0,
               f"a divisor of batch_size {config.batch_size}")  # fmt: skip
    expect("augment.mosaic.probability",
           config.batch_size % images_together(config) == 0,
           f"0, or a batch_size that 4 divides, not {config.batch_size}")  # fmt: skip
    expect("detect.force_suppress", not config.detect.force_suppress
           or config.detect.class_per_anchor == "best",
           "False, or detect.class_per_anchor = 'best'")  # fmt: skip
    with_softmax = config.loss.class_loss == "softmax"
    expect("model.class_activation", (config.model.class_activation == "softmax") == with_softmax,
           f"{'softmax' if with_softmax else 'sigmoid'}, which loss.class_loss "
           f"{config.loss.class_loss!r} requires")  # fmt: skip
    expect("loss.label_smoothing", not config.loss.label_smoothing or with_softmax,
           "0, or loss.class_loss = 'softmax'")  # fmt: skip
    expect("loss.normalization", config.loss.normalization == "positives"
           or (with_softmax and config.loss.box_loss == "smooth_l1"),
           "positives: only softmax with smooth_l1 can use valid")  # fmt: skip


def images_together(config: ConfigDict) -> int:
    """How many consecutive images of a batch must be on one device: four of a mosaic, else one."""
    return 4 if config.augment.mosaic.probability else 1


def _each_once(values: tuple) -> bool:
    return len(set(values)) == len(values)


def _numbers(values: tuple, count: int | None = None) -> bool:
    return count in (None, len(values)) and all(
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= LARGEST_NUMBER
        for value in values
    )
