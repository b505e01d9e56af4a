"""Which values of the settings are possible: found before anything is built."""

import difflib

from ml_collections import ConfigDict

from ssd_jax.config import default_config, flat_items, get
from ssd_jax.errors import UserError
from ssd_jax.recipes import recipe_config


def check(config: ConfigDict) -> None:
    """Raises `UserError` on the first value that no run could use; touches no file."""

    def expect(name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"config.{name}: got {get(config, name)!r}, expected {expected}.")

    def choice(name: str, *choices: str) -> None:
        value = get(config, name)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
            expect(name, False, f"one of {', '.join(choices)}; the nearest is {near}")

    def fraction(name: str) -> None:
        expect(name, 0.0 <= get(config, name) <= 1.0, "a number from 0 to 1")

    def at_least(name: str, least: int) -> None:
        value = get(config, name)
        expect(name, value is None or value >= least, f"at least {least}")

    defaults, given = (dict(flat_items(each)) for each in (default_config(), config))
    for name in sorted(defaults.keys() - given.keys()):
        raise UserError(
            f"config.{name}: it is missing. Change the settings of a group one by one, or with "
            f"config.{name.rpartition('.')[0]}.update({{...}})."
        )
    for name, value in given.items():
        expect(name, value is not None or defaults[name] is None, "a value")
    choice("recipe", "paper", "sagemaker", "best")
    choice("model.backbone", "vgg16", "resnet50", "resnet50_v1", "resnet50_v2", "small")
    recipe_config(config.recipe, config.model.backbone)
    choice("model.extras", "paper", "mxnet")
    choice("anchors.layout", "paper", "gluoncv", "mxnet", "mxnet_legacy")
    choice("augment.crop.choice", "even", "first")
    choice("loss.normalization", "positives", "valid")
    choice("detect.class_per_anchor", "all", "best")
    choice("detect.nms", "hard", "linear", "gaussian")
    choice("model.class_activation", "softmax", "sigmoid")
    choice("loss.class_loss", "softmax", "focal", "quality_focal", "varifocal")
    choice("loss.box_loss", "smooth_l1", "giou", "diou", "ciou")
    choice("model.dtype", "float32", "bfloat16")
    choice("model.batch_norm", "none", "frozen", "batch")
    choice("data.problems", "error", "skip")
    choice("data.cache", "none", "ram", "device")
    choice("sharding", "replicated", "fsdp")
    choice("optimizer.name", "sgd", "adamw", "adam", "rmsprop", "adadelta")
    choice("optimizer.schedule", "step", "cosine", "one_cycle")
    choice("evaluate.metric", "voc07", "voc12", "mxnet", "coco")
    choice("checkpoint.select", "last", "best")
    for name in ("match.iou_threshold", "detect.iou_threshold", "detect.score_threshold",
                 "evaluate.iou_threshold", "optimizer.momentum", "augment.flip",
                 "augment.flip_vertical",
                 "augment.distort.probability",
                 "augment.jitter.probability", "augment.crop.probability",
                 "augment.mosaic.probability", "loss.label_smoothing", "loss.focal_alpha",
                 "model.batch_norm_momentum", "augment.expand.probability"):  # fmt: skip
        fraction(name)
    for name in ("batch_size", "steps", "log_every_steps", "data.canvas", "data.label_width",
                 "evaluate.every_steps", "evaluate.batch_size", "checkpoint.every_steps",
                 "optimizer.steps_per_epoch",
                 "checkpoint.keep_latest", "detect.candidates", "early_stopping.patience",
                 "detect.max_detections", "augment.crop.trials"):  # fmt: skip
        at_least(name, 1)
    for name in ("loss.minimum_negatives", "loss.box_weight", "loss.group", "watchdog.factor",
                 "early_stopping.minimum_epochs", "early_stopping.tolerance",
                 "optimizer.weight_decay", "optimizer.warmup_steps", "data.threads",
                 "model.fpn_channels", "loss.focal_gamma",
                 "model.batch_norm_group"):  # fmt: skip
        at_least(name, 0)
    at_least("model.image_size", 64)
    for name in ("augment.image_sizes", "detect.image_sizes"):
        sizes = get(config, name)
        expect(name, all(type(size) is int and size >= 64 for size in sizes)
               and len(set(sizes)) == len(sizes),
               "whole pixels, at least 64, each size once")  # fmt: skip
    for name in ("epochs", "optimizer.learning_rate", "optimizer.clip_norm", "model.width",
                 "optimizer.gradient_scale", "detect.soft_nms_sigma",
                 "model.batch_norm_epsilon", "model.l2_epsilon",
                 "evaluate.every_epochs", "optimizer.decay_factor", "watchdog.minimum_seconds",
                 "watchdog.first_seconds"):  # fmt: skip
        value = get(config, name)
        expect(name, value is None or value > 0, "more than 0")
    expect("steps", (config.steps is None) != (config.epochs is None),
           "exactly one of config.steps and config.epochs")  # fmt: skip
    expect("evaluate.every_steps",
           config.evaluate.every_steps is None or config.evaluate.every_epochs is None,
           "at most one of every_steps and every_epochs")  # fmt: skip
    expect("early_stopping.enabled", not config.early_stopping.enabled
           or config.evaluate.every_epochs is not None or config.evaluate.every_steps is not None,
           "False, or evaluations to decide by: set evaluate.every_epochs")  # fmt: skip
    expect("model.batch_norm", not config.model.backbone.startswith("resnet50")
           or config.model.batch_norm != "none",
           "frozen or batch: a resnet50 has batch normalisation")  # fmt: skip
    for name in ("model.batch_norm_group", "loss.group"):
        group = get(config, name)
        expect(name, group == 0 or config.batch_size % group == 0,
               f"a divisor of batch_size {config.batch_size}")  # fmt: skip
    negative = config.match.negative_iou_threshold
    expect("match.negative_iou_threshold", negative is None or 0 <= negative <= 1,
           "a number from 0 to 1")  # fmt: skip
    expect("detect.force_suppress", not config.detect.force_suppress
           or config.detect.class_per_anchor == "best",
           "False, or detect.class_per_anchor = 'best'")  # fmt: skip
    with_softmax = config.loss.class_loss == "softmax"
    expect("model.class_activation", (config.model.class_activation == "softmax") == with_softmax,
           f"{'softmax' if with_softmax else 'sigmoid'}, which loss.class_loss "
           f"{config.loss.class_loss!r} is made for")  # fmt: skip
    expect("loss.label_smoothing", not config.loss.label_smoothing or with_softmax,
           "0, or loss.class_loss = 'softmax'")  # fmt: skip
    expect("loss.normalization", config.loss.normalization == "positives"
           or (with_softmax and config.loss.box_loss == "smooth_l1"),
           "positives: only softmax with smooth_l1 can be counted otherwise")  # fmt: skip
    expect("optimizer.ema_decay", 0 <= config.optimizer.ema_decay < 1, "at least 0, less than 1")
    mosaic = config.augment.mosaic
    expect("augment.mosaic.scale", _numbers(mosaic.scale, 2)
           and 1 <= mosaic.scale[0] <= mosaic.scale[1] <= 2,
           "two rising numbers from 1 to 2")  # fmt: skip
    expect("augment.mosaic.probability", not mosaic.probability or config.batch_size % 4 == 0,
           f"0, or a batch_size that 4 divides, not {config.batch_size}")  # fmt: skip
    expect("seed", 0 <= config.seed < 2**31, "a number from 0 to 2147483647")
    expect("evaluate.iou_threshold", config.evaluate.iou_threshold > 0, "more than 0")
    for name in ("preprocess.mean", "preprocess.std"):
        expect(name, _numbers(get(config, name), 3), "three numbers, one a channel (RGB)")
    expect("preprocess.std", 0 not in config.preprocess.std, "numbers that are not 0")
    expect("augment.expand.fill", config.augment.expand.fill == ()
           or _numbers(config.augment.expand.fill, 3), "three numbers (RGB) or ()")  # fmt: skip
    kinds = ("nearest", "linear", "cubic", "area", "lanczos4")
    kernels = config.augment.interpolations
    expect("augment.interpolations", len(kernels) > 0 and set(kernels) <= set(kinds),
           f"one or more of {', '.join(kinds)}")  # fmt: skip
    for name in ("optimizer.rate_multipliers", "optimizer.decay_multipliers"):
        expect(name, all(len(pair) == 2 and isinstance(pair[0], str) and _numbers(pair[1:])
                         for pair in get(config, name)),
               "pairs of a pattern and a factor, as ((\"*/bias\", 2.0),)")  # fmt: skip
    for name in ("augment.distort.contrast", "augment.distort.saturation",
                 "augment.expand.scale", "augment.crop.scale", "augment.crop.aspect"):  # fmt: skip
        low_high = get(config, name)
        expect(name, _numbers(low_high, 2) and 0 < low_high[0] <= low_high[1],
               "two rising numbers above 0")  # fmt: skip
    decays = ("optimizer.decay_epochs",) if config.optimizer.decay_epochs is not None else ()
    for name in ("augment.crop.min_ious", "anchors.scales", *decays):
        expect(name, _numbers(get(config, name)) and all(x >= 0 for x in get(config, name)),
               "numbers of at least 0")  # fmt: skip
    for name in decays:
        expect(name, list(get(config, name)) == sorted(get(config, name)), "rising epochs")
    for name in ("data.classes", "weights.reinitialise", "data.train.image_sets",
                 "data.val.image_sets", "data.test.image_sets"):  # fmt: skip
        value = get(config, name)
        expect(name, all(isinstance(each, str) for each in value) and len(set(value)) == len(value),
               "names, each once")  # fmt: skip


def _numbers(values: tuple, count: int | None = None) -> bool:
    return count in (None, len(values)) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
