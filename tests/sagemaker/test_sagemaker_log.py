"""What the log of a job tells, where it goes on after a stop."""

from ssd_jax.sagemaker.log import EpochLog, logger
from ssd_jax.sagemaker.train import _best_before


def test_a_job_that_goes_on_knows_its_best(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(logger, "info", lambda text, *words: told.append(text % words))
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
