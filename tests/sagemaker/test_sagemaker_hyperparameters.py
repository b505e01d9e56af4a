"""The hyperparameters of the original: texts in, our config out."""

import pathlib

import pytest

from ssd_jax.config import default_config, flat_items
from ssd_jax.config_check import check
from ssd_jax.errors import UserError
from ssd_jax.experiment import build_early_stopping
from ssd_jax.recipes import recipe_changes
from ssd_jax.sagemaker.hyperparameters import (
    OF_SETTINGS,
    RULES,
    frozen_paths,
    parse_hyperparameters,
    to_config,
)

PAGE = pathlib.Path(__file__).parents[2] / "docs/sagemaker.md"
REQUIRED = {"num_classes": "20", "num_training_samples": "16551"}
# The row of the published table that was trained on one GPU.
PUBLISHED = REQUIRED | {
    "base_network": "resnet-50",
    "image_shape": "512",
    "epochs": "240",
    "mini_batch_size": "16",
    "learning_rate": "0.0005",
    "lr_scheduler_step": "80, 160",
}


def config_of(*, images=16551, hosts=1, gpus=1, **given):
    values = parse_hyperparameters(REQUIRED | given)
    config = to_config(values, images=images, hosts=hosts, gpus=gpus)
    check(config)
    return config


def test_defaults_are_those_of_the_documentation():
    values = parse_hyperparameters(REQUIRED)
    assert values == {
        "num_classes": 20,
        "num_training_samples": 16551,
        "base_network": "vgg-16",
        "use_pretrained_model": 1,
        "image_shape": 300,
        "epochs": 30,
        "mini_batch_size": 32,
        "learning_rate": 0.001,
        "lr_scheduler_step": (),
        "lr_scheduler_factor": 0.1,
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "overlap_threshold": 0.5,
        "nms_threshold": 0.45,
        "label_width": 350,
        "freeze_layer_pattern": "",
        "kv_store": "dist_sync",
        "early_stopping": False,
        "early_stopping_min_epochs": 10,
        "early_stopping_patience": 5,
        "early_stopping_tolerance": 0.0,
        "nms_topk": 400,
        "_kvstore": "device",
        "_num_kv_servers": "auto",
        "_tuning_objective_metric": "",
        "_begin_epoch": 0,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mini_batch_siz": "8"}, r"not allowed \('mini_batch_siz' was unexpected\)"),
        ({"a": "", "b": ""}, r"not allowed \('a', 'b' were unexpected\)"),
        ({"num_classes": "0"}, "num_classes: 0 is less than the minimum of 1"),
        ({"num_classes": "3.0"}, "num_classes: '3.0' is not of type 'integer'"),
        ({"mini_batch_size": 30 * "9"}, f"{30 * '9'} is not of type 'integer', of 32 bits"),
        ({"num_classes": 5000 * "9"}, "num_classes: 9{40} is not of type 'integer', of 32 bits"),
        ({"base_network": "vgg16"}, r"'vgg16' is not one of \['vgg-16', 'resnet-50'\]"),
        ({"image_shape": "299"}, "299 is less than the minimum of 300"),
        ({"learning_rate": "0"}, "0 is less than or equal to the minimum of 0"),
        ({"learning_rate": "1.5"}, "1.5 is greater than the maximum of 1"),
        ({"learning_rate": "nan"}, "'nan' is not of type 'number'"),
        ({"lr_scheduler_factor": "1"}, "1 is greater than or equal to the maximum of 1"),
        ({"lr_scheduler_step": "160, 80"}, "'160, 80' is not a list of rising epochs"),
        ({"lr_scheduler_step": "80;160"}, "'80;160' is not a list of rising epochs, as '80, 160'"),
        ({"lr_scheduler_step": "1.5"}, "'1.5' is not a list of rising epochs"),
        ({"optimizer": "adamw"}, r"'adamw' is not one of \['sgd', 'adam', 'rmsprop', 'adadelta'\]"),
        ({"momentum": "1.1"}, "1.1 is greater than the maximum of 1"),
        ({"weight_decay": "1"}, "1 is greater than or equal to the maximum of 1"),
        ({"early_stopping": "yes"}, "'yes' is not of type 'boolean'"),
        ({"freeze_layer_pattern": "(conv"}, "not a regular expression"),
        ({"use_pretrained_model": "2"}, r"'2' is not one of \[0, 1\]"),
        ({"_begin_epoch": "3"}, r"'3' is not one of \[0\]"),
    ],
)
def test_what_is_wrong_is_told_in_the_words_of_the_original(given, message):
    with pytest.raises(UserError, match=message):
        parse_hyperparameters(REQUIRED | given)


@pytest.mark.parametrize(
    ("names", "smallest", "too_small", "largest", "too_large"),
    [
        (
            "num_training_samples epochs mini_batch_size label_width early_stopping_min_epochs "
            "early_stopping_patience",
            *("1", "0", "999999", None),
        ),
        ("num_classes", "1", "0", "65536", "65537"),
        ("image_shape", "300", "299", "8192", "8193"),
        ("nms_topk", "1", "0", "100000", "100001"),
        ("learning_rate overlap_threshold nms_threshold", "0.001", "0", "1", "1.001"),
        ("momentum early_stopping_tolerance", "0", "-0.001", "1", "1.001"),
        ("weight_decay", "0", "-0.001", "0.999", "1"),
        ("lr_scheduler_factor", "0.001", "0", "0.999", "1"),
    ],
)
def test_the_ranges_of_the_documentation(names, smallest, too_small, largest, too_large):
    for name in names.split():
        for text in (smallest, largest):
            assert parse_hyperparameters(REQUIRED | {name: text})[name] == float(text)
        for text in filter(None, (too_small, too_large)):
            with pytest.raises(UserError, match=f"{name}: {text} is "):
                parse_hyperparameters(REQUIRED | {name: text})


def test_all_problems_are_told_at_once():
    with pytest.raises(UserError) as error:
        parse_hyperparameters({"epochs": "0", "optimiser": "sgd"})
    for part in ("'num_classes' is a required property", "'optimiser' was", "epochs: 0 is less"):
        assert part in str(error.value)


@pytest.mark.parametrize(("text", "value"), [("True", True), ("false", False)])
def test_booleans_as_the_sdk_writes_them(text, value):
    assert parse_hyperparameters(REQUIRED | {"early_stopping": text})["early_stopping"] is value


def test_every_hyperparameter_reads_its_own_default():
    texts = {name: str(rule.default) for name, rule in RULES.items() if rule.default is not None}
    texts["lr_scheduler_step"] = ""
    assert parse_hyperparameters(REQUIRED | texts) == parse_hyperparameters(REQUIRED)


KINDS = {int: "integer", float: "number", bool: "`True`, `False`", str: "text",
         tuple: "rising epochs, as `80, 160`"}  # fmt: skip


def row_of(name, rule):
    """The line of the table in docs/sagemaker.md."""
    kind = KINDS[int if rule.default is None else type(rule.default)]
    low = "" if rule.minimum is None else f"{'above' if rule.above else 'from'} {rule.minimum:g}"
    high = "" if rule.maximum is None else f"{'below' if rule.below else 'to'} {rule.maximum:g}"
    chosen = [f"`{each}`" for each in rule.choices]
    values = ", ".join(chosen or filter(None, (kind, low, high)))
    defaults = {None: "required", (): "none", "": "none"}
    return f"| `{name}` | {values} | {defaults.get(rule.default, f'`{rule.default}`')} |"


def test_the_page_has_all_names_ranges_and_defaults():
    lines = PAGE.read_text().splitlines()
    begin = lines.index("| name | values | default |") + 2
    assert lines[begin : begin + len(RULES)] == [row_of(*rule) for rule in RULES.items()]
    assert not lines[begin + len(RULES)]


def test_the_published_row_is_the_recipe():
    config = config_of(**PUBLISHED)
    assert set(recipe_changes(config)) == {"optimizer.steps_per_epoch"}
    assert config.batch_size == 16
    assert config.evaluate.metric == "mxnet"


def test_an_epoch_of_the_schedule_is_whole_batches_of_the_samples_that_were_promised():
    config = config_of(**PUBLISHED)
    # The log of a job: "Update[3103]: Change learning rate" with steps at epoch 3 = 3 * 1034 + 1.
    assert config.optimizer.steps_per_epoch == 1034
    assert config.optimizer.decay_epochs == (80.0, 160.0)
    assert config_of(**PUBLISHED | {"num_training_samples": "32"}).optimizer.steps_per_epoch == 2


def test_there_are_as_many_evaluations_as_epochs():
    config = config_of(images=20, mini_batch_size="8", epochs="7")
    assert config.evaluate.every_steps == 2  # of 2.5
    assert config.steps == 14
    assert config.steps % config.log_every_steps == 0
    assert config.checkpoint.select == "best"


def test_an_epoch_has_a_step_where_images_do_not_fill_a_batch():
    config = config_of(images=3, mini_batch_size="8", epochs="7", num_training_samples="3")
    assert (config.evaluate.every_steps, config.steps) == (1, 7)
    assert config.optimizer.steps_per_epoch == 1


def test_pictures_are_kept_larger_than_the_network_sees_them():
    assert config_of(image_shape="300").data.canvas == default_config().data.canvas > 300


def test_logs_divide_an_epoch_evenly():
    assert config_of(images=16000, mini_batch_size="16").log_every_steps == 200
    assert config_of(images=16 * 1033, mini_batch_size="16").log_every_steps == 1033


def test_a_batch_is_that_of_all_hosts_and_a_group_that_of_one_gpu():
    config = config_of(base_network="resnet-50", mini_batch_size="32", hosts=2, gpus=4)
    assert config.batch_size == 64
    assert config.loss.group == config.model.batch_norm_group == 8
    assert config.optimizer.steps_per_epoch == 16551 // 64
    assert config_of(mini_batch_size="32", gpus=0).loss.group == 32
    assert config_of(mini_batch_size="30", gpus=4).loss.group == 30  # which 4 do not divide


@pytest.mark.parametrize(
    ("name", "rate", "decay"),
    [
        ("sgd", 0.001, 0.0005),
        ("adam", 0.001, 0.0),
        ("rmsprop", 0.0001, 0.0005),
        ("adadelta", 1.0, 0.0),
    ],
)
def test_optimizers_take_what_mxnet_is_given(name, rate, decay):
    given = {"momentum": "0.5", "lr_scheduler_step": "3", "lr_scheduler_factor": "0.25"}
    words = config_of(optimizer=name, **given).optimizer
    assert (words.name, words.momentum, words.decay_factor) == (name, 0.5, 0.25)
    assert words.learning_rate == pytest.approx(rate)
    assert words.weight_decay == decay
    assert bool(words.rate_multipliers) == bool(words.decay_epochs) == (name != "adadelta")
    assert words.gradient_scale == (1 / 32 if name == "adadelta" else 1.0)


def test_early_stopping_and_thresholds():
    config = config_of(
        images=20,
        mini_batch_size="8",
        early_stopping="True",
        early_stopping_min_epochs="4",
        early_stopping_patience="3",
        early_stopping_tolerance="0.01",
        overlap_threshold="0.6",
        nms_threshold="0.3",
        nms_topk="100",
        label_width="600",
        image_shape="640",
    )
    words = config.early_stopping
    assert (words.enabled, words.patience, words.tolerance) == (True, 3, 0.01)
    # As many epochs of the job, also if images are left out.
    for images in (20, 9):
        rule = build_early_stopping(config, images)
        assert rule.minimum_step == 4 * config.evaluate.every_steps
    assert config.evaluate.iou_threshold == 0.6
    assert (config.detect.iou_threshold, config.detect.candidates) == (0.3, 100)
    assert config.data.label_width == 600
    assert config.data.canvas == config.model.image_size == 640


def test_the_settings_that_hyperparameters_become_are_known():
    others = {
        "base_network": "resnet-50",
        "image_shape": "512",
        "lr_scheduler_step": "3",
        "optimizer": "adam",
        "early_stopping": "True",
    }
    before = dict(flat_items(config_of()))
    for setting, name in OF_SETTINGS.items():
        if name in ("num_classes", "freeze_layer_pattern"):
            assert setting in before
        else:
            text = others.get(name, "9" if isinstance(RULES[name].default, int | None) else "0.7")
            assert dict(flat_items(config_of(**{name: text})))[setting] != before[setting]


PATHS = (
    "params/backbone/conv1_1/kernel",
    "params/backbone/conv1_1/bias",
    "params/backbone/conv2_1/kernel",
    "params/backbone/conv3_1/kernel",
    "params/extras/conv6_1/kernel",
    "params/heads/class_0/kernel",
)


@pytest.mark.parametrize(
    ("pattern", "frozen"),
    [
        ("^(conv1_|conv2_).*", PATHS[:3]),  # the example of the documentation
        ("conv1_1_weight", PATHS[:1]),
        ("multi_feat_2_", PATHS[4:5]),
        ("relu4_3_cls", PATHS[5:]),
        ("backbone/conv[12]", PATHS[:3]),  # by our names
        (".*_1_weight", (PATHS[0], *PATHS[2:4])),
    ],
)
def test_layers_are_frozen_by_the_beginning_of_either_name(pattern, frozen):
    assert frozen_paths(pattern, "vgg16", PATHS) == list(frozen)


def test_the_names_of_the_other_network_freeze_nothing_and_are_refused():
    with pytest.raises(UserError, match="'conv1_' does not match the start of any"):
        frozen_paths("conv1_", "resnet50_v2", ["params/backbone/conv0/kernel"])
