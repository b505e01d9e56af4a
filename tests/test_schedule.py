"""When the learning rate of a config falls, and what is told of one that never does."""

import pytest

from ssd_jax import config as configs
from ssd_jax.config import default_config
from ssd_jax.experiment import build_schedule, evaluate_every, schedule_warnings, steps_of

IMAGES = 1500


def config_of(**changes):
    config = default_config()
    config.epochs, config.batch_size = 60.0, 30  # 3,000 steps
    config.optimizer.update(changes)
    return config


@pytest.mark.parametrize("steps", [3000, 300])
def test_the_rate_falls_after_two_thirds_and_five_sixths_of_any_run(steps):
    config = config_of(learning_rate=1.0)
    config.epochs = steps * 30 / IMAGES
    schedule = build_schedule(config, IMAGES)
    parts = (0.0, 0.65, 0.68, 0.82, 0.85, 1.0)
    rates = [float(schedule(round(part * steps))) for part in parts]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    config.optimizer.learning_rate = 0.002
    assert schedule_warnings(config, IMAGES) == []


def test_a_rate_for_larger_batches_is_told():
    config = config_of(learning_rate=0.001)
    config.batch_size = 4
    (told,) = schedule_warnings(config, IMAGES)
    assert "0.001 is high for batches of 4" in told
    assert "learning_rate=0.00013" in told
    config.optimizer.name = "adamw"  # whose steps are as long as the rate, whatever the gradient
    assert schedule_warnings(config, IMAGES) == []


def test_a_batch_of_more_images_than_there_are_is_told():
    config = config_of(learning_rate=1e-4)
    config.batch_size = 32
    assert schedule_warnings(config, 32) == []
    (told,) = schedule_warnings(config, 20)
    assert "some of the 20 images more than once" in told
    assert "--config.batch_size=16 " in told
    config.loss.group = 32
    assert "augments each alike: a smaller one learns" in schedule_warnings(config, 20)[0]


def test_epochs_that_are_given_count_as_epochs():
    schedule = build_schedule(config_of(learning_rate=1.0, decay_epochs=(20.0,)), IMAGES)
    assert [float(schedule(step)) for step in (999, 1001)] == pytest.approx([1, 0.1])
    schedule = build_schedule(config_of(learning_rate=1.0, decay_epochs=()), IMAGES)
    assert float(schedule(2999)) == 1


def test_a_rate_that_never_falls_is_told():
    (told,) = schedule_warnings(config_of(decay_epochs=(40.0, 160.0)), IMAGES)
    assert "would fall at step 8000, and the run ends at step 3000" in told
    assert schedule_warnings(config_of(decay_epochs=(40.0, 160.0), schedule="cosine"), IMAGES) == []


def test_a_run_of_one_step_is_not_told_that_its_rate_never_falls():
    config = config_of()
    config.epochs, config.steps = None, 1
    assert schedule_warnings(config, IMAGES) == []


def test_a_warm_up_that_takes_much_of_the_run_is_told():
    (told,) = schedule_warnings(config_of(warmup_steps=1000), IMAGES)
    assert "1000 of the 3000 steps" in told
    assert "warmup_steps=300" in told
    assert schedule_warnings(config_of(warmup_steps=500), IMAGES) == []


def test_epochs_that_never_come_overflow_nothing():
    config = config_of(decay_epochs=(1e9, 2e9), learning_rate=1.0)
    assert float(build_schedule(config, IMAGES)(5)) == 1.0
    config.evaluate.every_epochs = 1e-320
    assert evaluate_every(config, IMAGES) == 1.0
    assert steps_of(2e9, 2000, 1) == 2**31 - 1


def test_the_epochs_of_a_schedule_are_kept_in_a_file(tmp_path):
    config = config_of()
    for decays in (None, (), (40.0, 50.0)):
        config.optimizer.decay_epochs = decays
        configs.save_config(config, tmp_path / "config.json")
        assert configs.read_config(tmp_path / "config.json").optimizer.decay_epochs == decays


@pytest.mark.parametrize(
    ("text", "value"), [("(10,20.0)", (10, 20.0)), ("10,20", (10, 20)), ("10", (10,)), ("", ())]
)
def test_the_epochs_of_a_schedule_are_given_in_words(text, value):
    config = config_of()
    configs.override(config, [("optimizer.decay_epochs", text)])
    assert config.optimizer.decay_epochs == value
    configs.override(config, [("optimizer.decay_epochs", "None")])
    assert config.optimizer.decay_epochs is None
