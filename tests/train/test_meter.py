"""The figures of the progress line."""

import time

import pytest

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


def test_a_restart_forgets():
    meter = Meter()
    meter.add({"loss": 1.0}, images=8)
    meter.waited(100.0)
    meter.restart()
    meter.add({"loss": 2.0}, images=8)
    values = meter.read()
    assert values["loss"] == 2.0
    assert values["data_wait"] == pytest.approx(0.0)
