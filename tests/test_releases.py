"""Runs that earlier releases have made: they are opened, gone on with and shown."""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest

from ssd_jax.config import read_config
from ssd_jax.detector import Detector
from ssd_jax.report.collect import open_run
from ssd_jax.report.page import run_page
from ssd_jax.report.starts import read_starts
from ssd_jax.runs.log import read_metrics
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh

RELEASES = sorted(path.parent for path in pathlib.Path(__file__).parent.glob("releases/*/run.*"))


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request):
    return request.param


@pytest.fixture
def run(release, tmp_path):
    with tarfile.open(release / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_its_detector_finds_what_it_found_then(release, run):
    detector = Detector.load(run)
    (found,) = detector([(release / "picture.png").read_bytes()])
    before = json.loads((release / "detections.json").read_text())
    shown = found.scores >= 0.5
    assert [detector.classes[label] for label in found.labels[shown]] == [
        each["class"] for each in before
    ]
    for name, values in (("score", found.scores), ("box_xyxy", found.boxes)):
        np.testing.assert_allclose(values[shown], [each[name] for each in before], atol=5e-3)


def test_its_training_goes_on(shapes, run):
    config = read_config(run / "config.json")
    for split in ("train", "val"):
        config.data[split].root = str(shapes)
    end = config.steps
    config.steps += 2
    config.log_every_steps = 1
    run_training(config, run, mesh=make_mesh(jax.devices()[:1]), change=["steps"])
    losses = {r["step"]: r["loss"] for r in read_metrics(run / "metrics.jsonl") if "loss" in r}
    # A state that was not read as it was written would begin near the loss of the first steps.
    assert losses[end + 1] < 2 * losses[end] < losses[min(losses)] / 4
    assert [start["step"] for start in read_starts(run)] == [0, end]


def test_its_report_is_shown(run):
    shown = open_run(run)
    page = run_page(shown)
    assert shown.report["headline"].split(" = ")[0] in page
    assert read_starts(run)[0]["code"]["commit"][:12] in page
