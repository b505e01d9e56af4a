"""What the log of a job tells, epoch by epoch and where it goes on after a stop."""

import pytest

from ssd_jax.sagemaker.log import EpochLog, logger
from ssd_jax.sagemaker.train import _best_before


@pytest.fixture
def told(monkeypatch):
    """The lines."""
    lines = []
    monkeypatch.setattr(logger, "info", lambda text, *words: lines.append(text % words))
    return lines


def test_the_lines_of_two_epochs(told, monkeypatch):
    now = 0.0
    monkeypatch.setattr("ssd_jax.sagemaker.log.time.monotonic", lambda: now)
    tell = EpochLog(host="algo-1", steps=4, steps_per_epoch=2, batch_size=8, metric="map_mxnet")
    losses = {"class_loss": 1.0, "box_loss": 0.5}, {"class_loss": 3.0, "box_loss": 0.25}
    now = 3661.5
    for step, values in enumerate(losses, start=1):
        tell(step, "train", values | {"images_per_second": 12.34})
    tell(2, "val", {"map_mxnet": None})
    now += 1
    tell(3, "train", losses[1] | {"images_per_second": 5.0})
    tell(4, "val", {"map_mxnet": 0.5})
    epoch_0, epoch_1 = (f"#quality_metric: host=algo-1, epoch={epoch}" for epoch in (0, 1))
    assert told == [
        "Epoch:    0, batches:       1, num_examples:       8, 12.3 samples/sec, "
        "epoch time so far:  1:01:01.500000",
        "Epoch:    0, batches:       2, num_examples:      16, 12.3 samples/sec, "
        "epoch time so far:  1:01:01.500000",
        f"{epoch_0}, batch=2 train cross_entropy <loss>=(2.0)",
        f"{epoch_0}, batch=2 train smooth_l1 <loss>=(0.375)",
        f"{epoch_0}, validation mAP <score>=(0.0)",
        "#progress_metric: host=algo-1, completed 50.0 % of epochs",
        "Epoch:    1, batches:       1, num_examples:       8, 5.0 samples/sec, "
        "epoch time so far:  0:00:01.000000",
        f"{epoch_1}, batch=2 train cross_entropy <loss>=(3.0)",
        f"{epoch_1}, batch=2 train smooth_l1 <loss>=(0.25)",
        f"{epoch_1}, validation mAP <score>=(0.5)",
        "Updating the best model with validation-mAP=0.5",
        "#progress_metric: host=algo-1, completed 100.0 % of epochs",
    ]


def test_a_job_that_goes_on_knows_its_best(told, tmp_path):
    lines = '{"map_mxnet": 0.5}', '{"loss": 1}', '{"map_mxnet": null}', ""
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    best = _best_before(tmp_path / "metrics.jsonl", "map_mxnet")
    words = {"steps": 5, "steps_per_epoch": 1, "batch_size": 8, "metric": "map_mxnet"}
    tell = EpochLog(host="algo-1", best=best, **words)
    for step, score in enumerate((0.4, 0.6), start=3):
        tell(step, "val", {"map_mxnet": score})
    updates = [line for line in told if line.startswith("Updating")]
    assert updates == ["Updating the best model with validation-mAP=0.6"]
    assert _best_before(tmp_path / "none.jsonl", "map_mxnet") == 0
