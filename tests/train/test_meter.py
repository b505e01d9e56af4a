"""The figures of the progress line."""

import time

from ssd_jax.train.meter import Meter


def test_means_speed_and_wait_between_two_reports():
    meter = Meter()
    meter.add({"loss": 1.0}, images=8)
    meter.add({"loss": 3.0}, images=8)
    time.sleep(0.02)
    meter.waited(0.01)
    values = meter.read()
    assert values["loss"] == 2.0
    assert 0 < values["images_per_second"] <= 16 / 0.02
    assert 0 < values["data_wait"] <= 0.01 / 0.02
    meter.add({"loss": 5.0}, images=8)
    assert meter.read()["loss"] == 5.0


def test_an_evaluation_does_not_count_as_training_time():
    meter = Meter()
    meter.add({"loss": 1.0}, images=8)
    time.sleep(0.05)
    meter.exclude(0.05)
    assert meter.read()["images_per_second"] > 8 / 0.05
