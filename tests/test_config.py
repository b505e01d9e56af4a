"""Configs: typos and impossible values fail before anything is built."""

import json

import pytest

from ssd_jax import config as configs
from ssd_jax import network
from ssd_jax.config_check import CHOICES, INTERPOLATIONS, SMALLEST_IMAGE, check
from ssd_jax.errors import UserError
from ssd_jax.models import ssd
from ssd_jax.ops import box_losses, detect, interpolation, losses
from ssd_jax.report.collect import config_of_any_version
from ssd_jax.train import optimizer


def overridden(**assignments):
    config = configs.default_config()
    config.steps = 10
    configs.override(config, list(assignments.items()))
    return config


def test_an_override_keeps_the_type_of_the_default():
    config = overridden(
        **{
            "optimizer.learning_rate": "1",
            "model.dtype": "bfloat16",
            "data.train.image_sets": "train",
            "augment.crop.min_ious": "()",
            "evaluate.every_steps": "5",
            "data.classes": "cat,dog",
            "data.train.root": "2007",
        }
    )
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.model.dtype == "bfloat16"
    assert config.data.train.image_sets == ("train",)
    assert config.augment.crop.min_ious == ()
    assert config.evaluate.every_steps == 5
    assert config.data.classes == ("cat", "dog")
    assert config.data.train.root == "2007"


def test_a_typo_names_the_nearest_setting():
    with pytest.raises(UserError, match=r"no such setting.*--config\.optimizer\.learning_rate"):
        overridden(**{"optimizer.lerning_rate": "1"})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("batch_size", "many", "a whole number"),
        ("steps", "1.5", "a whole number"),
        ("batch_size", "True", "a whole number"),
        ("data.doctor", "1", "True or False"),
        ("epochs", "ten", "a number"),
    ],
)
def test_a_value_of_another_kind_is_refused(name, text, expected):
    with pytest.raises(UserError, match=rf"config\.{name}: got '{text}', expected {expected}"):
        overridden(**{name: text})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat, dog", ("cat", "dog")),
        ("(cat,dog)", ("cat", "dog")),
        ("[cat, dog]", ("cat", "dog")),
        ("['cat', \"dog\"]", ("cat", "dog")),
        ("cat,", ("cat",)),
        ("1,2,03", ("1", "2", "03")),
        ("(1_0, 2.50)", ("1_0", "2.50")),
        ("7", ("7",)),
        ("'cat, big',", ("cat, big",)),
        ("('train', 2007)", ("train", "2007")),
        ("'cat, big'", ("cat, big",)),
        ("(a) cat, dog (b)", ("(a) cat", "dog (b)")),
        ("(cat (big), dog)", ("cat (big)", "dog")),
        ("()", ()),
        ("", ()),
    ],
)
def test_names_are_read_as_they_are_meant(text, names):
    config = overridden(**{"data.classes": text, "data.train.image_sets": text})
    assert config.data.classes == config.data.train.image_sets == names
    check(config)


@pytest.mark.parametrize("text", ["False", "false"])
def test_true_and_false_may_be_lower_case(text):
    assert overridden(**{"data.doctor": text}).data.doctor is False


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model.backbone", "vgg19", "nearest is vgg16, or a class of your own, package.module:C"),
        ("model.backbone", "my net:Class", "package.module:Class"),
        ("match.iou_threshold", "1.5", "from 0 to 1"),
        ("batch_size", "0", "at least 1"),
        ("early_stopping.enabled", "True", "set evaluate.every_epochs"),
        ("early_stopping.patience", "0", "at least 1"),
        ("watchdog.minimum_seconds", "0.0", "more than 0"),
        ("model.image_size", "32", "at least 64"),
        ("augment.image_sizes", "(64, 32)", "at least 64"),
        ("detect.image_sizes", "(64, 96.5)", "whole pixels"),
        ("detect.image_sizes", "(64, 64)", "each size once"),
        ("optimizer.learning_rate", "-1.0", "more than 0"),
        ("epochs", "3", "exactly one of .* For 10 steps add --config.epochs=None"),
        ("steps", "None", "exactly one of .* e.g. --config.epochs=100"),
        ("optimizer.decay_epochs", "(5.0, 2.0)", "increasing"),
        ("model.batch_norm_group", "5", "divisor of batch_size 32"),
        ("model.backbone", "resnet50", "has batch normalisation"),
        ("preprocess.mean", "(1.0,)", "three numbers"),
        ("preprocess.std", "(1, 0, 1)", "not 0"),
        # JSON has no infinity.
        ("preprocess.mean", "(1e999, 1, 1)", "three numbers"),
        ("optimizer.learning_rate", "1e999", "a finite number"),
        ("early_stopping.minimum_epochs", "1e999", "a finite number"),
        ("watchdog.factor", "1e999", "a finite number"),
        ("optimizer.rate_multipliers", "(('*', 1e999),)", "pairs"),
        ("optimizer.rate_multipliers", "(0.1,)", "pairs"),
        ("optimizer.warmup_steps", str(2**31), "at most 2147483647"),
        ("anchors.scales", f"(0.1, {10**400})", "numbers above 0"),
        ("augment.crop.min_ious", "(30,)", "from 0 to 1"),
        ("augment.interpolations", "[[1]]", "one or more of nearest"),
        ("anchors.scales", "(0.0, 0.5)", "numbers above 0"),
        ("augment.expand.scale", "(4.0, 1.0)", "two increasing"),
        ("anchors.scales", "a,b", "numbers"),
        ("data.classes", "cat,cat", "each once"),
        ("data.classes", "cat,,dog", "not empty"),
        ("data.classes", "('cat', ' ')", "not empty"),
        ("seed", "-1", "at least 0"),
        ("seed", str(2**31), "at most 2147483647"),
        ("loss.class_loss", "focl", "nearest is focal"),
        ("loss.class_loss", "varifocal", "sigmoid, which loss.class_loss 'varifocal' requires"),
        ("model.class_activation", "sigmoid", "softmax, which"),
        ("loss.box_loss", "iou", "nearest is"),
        ("loss.label_smoothing", "1.5", "from 0 to 1"),
        ("optimizer.ema_decay", "1.0", "less than 1"),
        ("model.batch_norm_momentum", "1.0", "less than 1"),
        ("augment.mosaic.scale", "(0.5, 2.0)", "from 1 to 2"),
        ("detect.nms", "soft", "one of hard, linear, gaussian"),
        ("detect.soft_nms_sigma", "0.0", "more than 0"),
        ("sharding", "zero", "one of replicated, fsdp"),
        ("evaluate.iou_threshold", "0.0", "more than 0"),
        ("loss.negatives_per_positive", "-1", "at least 0"),
        ("augment.distort.hue", "-5.0", "at least 0"),
        ("augment.distort.hue", "200.0", "at most 180"),
        ("augment.jitter.contrast", "1.5", "from 0 to 1"),
    ],
)
def test_an_impossible_value_is_refused(name, value, expected):
    with pytest.raises(UserError, match=rf"config\..*: got .*{expected}"):
        check(overridden(**{name: value}))


def test_a_warm_up_longer_than_a_cosine_is_refused():
    words = {"optimizer.schedule": "cosine", "steps": "6", "epochs": "None"}
    check(overridden(**words, **{"optimizer.warmup_steps": "6"}))
    with pytest.raises(UserError, match="got 100, expected at most the 6 steps of the run"):
        check(overridden(**words, **{"optimizer.warmup_steps": "100"}))


def test_an_own_backbone_is_known_by_its_form_and_no_resnet_by_its_name():
    check(overridden(**{"model.backbone": "resnet50_of_mine.nets:Net"}))


def test_the_words_to_choose_from_are_those_of_what_reads_them():
    known = {
        "model.backbone": {"vgg16", "small", *ssd._RESNETS},
        "model.extras": ssd._EXTRAS,
        "model.dtype": ssd._DTYPES,
        "model.batch_norm": ssd._BATCH_NORMS,
        "model.class_activation": ssd._ACTIVATIONS,
        "anchors.layout": network._LEVELS,
        "loss.class_loss": losses.CLASS_LOSSES,
        "loss.box_loss": ("smooth_l1", *box_losses.BOX_LOSSES),
        "optimizer.name": optimizer.OPTIMIZERS,
        "detect.nms": detect.SUPPRESSIONS,
    }
    assert {name: set(CHOICES[name]) for name in known} == {k: set(v) for k, v in known.items()}
    assert INTERPOLATIONS == interpolation.INTERPOLATIONS
    assert SMALLEST_IMAGE == ssd._SMALLEST_IMAGE


def test_a_saved_config_reads_back_equal(tmp_path):
    config = overridden(**{"data.classes": "('a', 'b')", "evaluate.every_epochs": "0.5"})
    configs.save_config(config, tmp_path / "config.json")
    assert configs.read_config(tmp_path / "config.json").to_dict() == config.to_dict()


def test_a_setting_that_does_not_exist_is_refused():
    """A run with it would train to its end, and then nothing could read its config."""
    config = overridden()
    with config.unlocked():
        config.optimizer.lerning_rate = 5.0
    message = r"optimizer\.lerning_rate: there is no .* nearest is config\.optimizer\.learning_rate"
    with pytest.raises(UserError, match=message):
        check(config)


def test_a_group_that_lost_a_setting_is_refused():
    config = overridden()
    config.early_stopping = {"enabled": True}
    with pytest.raises(UserError, match=r"early_stopping\.\w+: the setting is missing.*\.update"):
        check(config)


def test_no_text_is_an_empty_tuple():
    assert overridden(**{"data.train.image_sets": ""}).data.train.image_sets == ()


def test_a_tilde_ahead_of_a_place_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    config = overridden(**{"data.train.root": "~/a + ~/b@train + c", "weights.path": "~/w"})
    assert config.data.train.root == "/home/me/a + /home/me/b@train + c"
    assert config.weights.path == "/home/me/w"
    config.data.val.root = "~/of_a_file"
    configs.override(config, [])
    assert config.data.val.root == "/home/me/of_a_file"
    monkeypatch.setenv("HOME", str(tmp_path))
    configs.save_config(config, tmp_path / "config.json")
    assert configs.load_config("~/config.json").data.val.root == "/home/me/of_a_file"


def test_a_missing_value_is_refused():
    config = overridden()
    config.update_from_flattened_dict({"batch_size": None})
    with pytest.raises(UserError, match=r"config\.batch_size: got None, expected a value"):
        check(config)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"batch_size": "many"}', f'{{"optimizer": {{"momentum": 1{400 * "0"}}}}}',
     f'{{"a": {100_000 * "["}'],
)  # fmt: skip
def test_a_damaged_config_is_told(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: the file is damaged"):
        configs.read_config(tmp_path / "config.json")


def test_a_setting_of_another_version_is_told_with_the_version_to_go_back_to(tmp_path):
    (tmp_path / "config.json").write_text('{"batch_sise": 3, "loss": {"new": 1}, "seed": 4}')
    with pytest.raises(UserError, match="started with another version: use that"):
        configs.read_config(tmp_path / "config.json")
    start = {"environment": {"ssd_jax": "0.0.9"}, "code": {"commit": "c0ffee"}}
    (tmp_path / "starts.jsonl").write_text(json.dumps(start) + "\n")
    with pytest.raises(UserError, match=r"ssd_jax 0\.0\.9 at commit c0ffee") as error:
        configs.read_config(tmp_path / "config.json")
    assert "has no setting batch_sise, loss.new." in str(error.value)
    assert len(str(error.value)) < 400
    config = config_of_any_version(tmp_path / "config.json")  # of a report
    assert (config.seed, config.batch_sise, config.loss.new, config.batch_size) == (4, 3, 1, 32)


def test_a_setting_that_was_renamed_is_read_by_its_old_name(tmp_path, monkeypatch):
    monkeypatch.setitem(configs.RENAMED, "loss.alpha", "loss.focal_alpha")
    (tmp_path / "config.json").write_text('{"loss": {"alpha": 0.5}}')
    for read in (configs.read_config, config_of_any_version):
        assert read(tmp_path / "config.json").loss.focal_alpha == 0.5


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(UserError, match="ssd-jax train"):
        configs.read_config(tmp_path / "config.json")


def test_assignments_take_both_spellings_and_nothing_else():
    split = configs.split_assignments
    assert split(["--config.a.b=1=2", "--config.c", "x"]) == [("a.b", "1=2"), ("c", "x")]
    with pytest.raises(UserError, match="--batch_size=3: not understood"):
        split(["--batch_size=3"])
    with pytest.raises(UserError, match="the value is missing"):
        split(["--config.c"])


def test_a_config_file_is_loaded_by_path_with_its_variant(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssd_jax.config import default_config\n"
        "def get_config(variant='long'):\n"
        "    config = default_config()\n"
        "    config.steps = {'long': 100, 'short': 1}[variant]\n"
        "    return config\n"
    )
    assert configs.load_config(str(file)).steps == 100
    assert configs.load_config(f"{file}:short").steps == 1
    with pytest.raises(UserError, match="no such file"):
        configs.load_config(str(tmp_path / "missing.py"))
    text = tmp_path / "notes.txt"
    text.write_text("")
    with pytest.raises(UserError, match="not a Python file"):
        configs.load_config(str(text))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1 / 0", "line 4: ZeroDivisionError: division by zero"),
        ("config.optimizer.lr = 1", "line 4: no setting lr there; .* learning_rate, "),
        ("config.stpes = 1", "line 4: no setting stpes there; the nearest is steps"),
        ("config.optimiser.momentum", "line 4: no setting optimiser there; .* is optimizer"),
        ("{}['short']", "line 4: KeyError: 'short'"),
        ("config.steps = ", "line 4: SyntaxError: invalid syntax"),
        ("load_config('missing.py')", "line 4: config missing.py: no such file in /"),
    ],
)
def test_a_mistake_in_a_config_file_is_told_with_its_line(line, expected, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssd_jax.config import default_config, load_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    {line}\n"
        "    return config\n"
    )
    with pytest.raises(UserError, match=rf"config .*mine\.py: {expected}"):
        configs.load_config(str(file))


def test_a_config_file_needs_get_config(tmp_path):
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(UserError, match=r"mine\.py: it has no get_config\(\)"):
        configs.load_config(str(tmp_path / "mine.py"))


def test_a_recipe_is_no_word_to_change_alone():
    with pytest.raises(UserError, match=r"voc0712_sagemaker_512\.py"):
        configs.override(configs.default_config(), [("recipe", "sagemaker")])


def test_the_config_of_a_run_is_a_config(tmp_path):
    config = configs.default_config()
    config.batch_size = 7
    configs.save_config(config, tmp_path / "config.json")
    assert configs.load_config(str(tmp_path / "config.json")).to_dict() == config.to_dict()
