"""A run that goes on with other settings: which it takes, what it keeps, and what it tells."""

import json
import shutil

import jax
import pytest
from same_run import losses, steps_on_disk
from tiny import tiny_config

from ssd_jax.cli import main
from ssd_jax.config import read_config, save_config
from ssd_jax.errors import Stopped, UserError
from ssd_jax.report.collect import open_run
from ssd_jax.report.starts import read_starts
from ssd_jax.runs import training
from ssd_jax.runs.same_run import allowed_changes
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh


@pytest.fixture
def run(tiny_run, tmp_path):
    """A finished run of six steps, to be changed."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def go_on(shapes, run, change=(), observers=(), **changes):
    mesh = make_mesh(jax.devices()[:1])
    config = tiny_config(shapes, **changes)
    return run_training(config, run, mesh=mesh, change=change, observers=observers)


def test_a_finished_run_trains_on_at_another_rate(shapes, run, capsys):
    change = ["steps", "optimizer.learning_rate", "evaluate.every_steps"]
    words = {"steps": 8, "optimizer__learning_rate": 1e-4, "evaluate__every_steps": 1}
    before = losses(run)
    go_on(shapes, run, change, **words)
    told = capsys.readouterr().out
    assert "from here on: config.steps was 6 and is now 8" in told
    assert "the learning rate at step 6 was 0.001 and is now 0.0001" in told

    assert losses(run)[: len(before)] == before
    on_the_way = [(r["step"], r.get("lr")) for r in losses(run)[len(before) :]]
    assert on_the_way == [(7, pytest.approx(1e-4)), (7, None), (8, pytest.approx(1e-4)), (8, None)]
    assert read_config(run / "config.json").steps == 8
    changes = {
        "steps": {"from": 6, "to": 8},
        "evaluate.every_steps": {"from": 4, "to": 1},
        "optimizer.learning_rate": {"from": 0.001, "to": 0.0001},
    }
    assert [start["changes"] for start in read_starts(run)] == [{}, changes]
    report = json.loads((run / "report.json").read_text())
    assert report["how"]["starts"][-1]["changes"] == changes
    page = (run / "report.html").read_text()
    assert "Settings changed during the run" in page
    assert "optimizer.learning_rate" in page

    # The same command again, as a scheduler gives it, finds nothing more to do.
    go_on(shapes, run, change, **words)
    assert len(read_starts(run)) == 2
    assert "--change steps: already 8" in capsys.readouterr().out


def test_a_finished_run_that_goes_on_and_stops_is_unfinished(shapes, run):
    def stop(step, split, values):
        raise Stopped("as an observer may")

    with pytest.raises(Stopped):
        go_on(shapes, run, ["steps"], observers=[stop], steps=8)
    found = open_run(run)
    assert found.unfinished == "unfinished, step 7"
    assert (found.config.steps, found.report["step"]) == (8, 6)


def test_a_finished_run_is_measured_anew_with_other_settings(shapes, run):
    go_on(shapes, run, ["detect.max_detections"], detect__max_detections=3)
    assert read_starts(run)[-1]["step"] == 6
    assert list(read_starts(run)[-1]["changes"]) == ["detect.max_detections"]
    assert json.loads((run / "report.json").read_text())["config"]["detect"]["max_detections"] == 3


@pytest.mark.parametrize(
    ("change", "changes", "message"),
    [
        ((), {"steps": 8}, r"steps was 6 and is now 8\. .*--change steps \(in Python change="),
        (("steps",), {"steps": 8, "loss__box_weight": 2.0}, r"another config: config\.loss\.box_"),
        (("seed",), {"seed": 1}, r"seed was 0 and is now 1 \(the order of the images"),
        (
            ("batch_size",),
            {"batch_size": 4},
            r"\(the position in the data is step times batch_size",
        ),
        (("model.dtype",), {"model__dtype": "bfloat16"}, r"\(it would be another network\)"),
        (("anchors.layout",), {"anchors__layout": "gluoncv"}, "trained for these anchors"),
        (("data.classes",), {"data__classes": ("triangle", "ring", "cross")}, "these classes"),
        (("evaluate.metric",), {"evaluate__metric": "coco"}, "the best checkpoint is chosen by"),
        (("optimizer.name",), {"optimizer__name": "adamw"}, "optimizer would no longer fit"),
        (("optimizer.ema_decay",), {"optimizer__ema_decay": 0.9}, "optimizer would no longer fit"),
        (("steps",), {"steps": 5}, "of step 6, but the run would end at step 5"),
        (("stpes",), {}, r"--change: got 'stpes', which is not a setting\. The nearest is steps"),
    ],
)
def test_what_cannot_change_leaves_the_run_as_it_was(change, changes, message, shapes, run):
    before = {path: path.read_bytes() for path in (run / "config.json", run / "starts.jsonl")}
    steps = steps_on_disk(run)
    with pytest.raises(UserError, match=message) as error:
        go_on(shapes, run, change, **changes)
    # Where no change helps, none is recommended.
    assert ("--change steps (in" in str(error.value)) == (not change)
    assert {path: path.read_bytes() for path in before} == before
    assert steps_on_disk(run) == steps


def test_a_clip_norm_may_come_on_the_way(shapes, run):
    """As the message of a loss that is not finite says; its part of the state is empty."""
    # Its state fits, or this would not be recorded.
    go_on(shapes, run, ["optimizer.clip_norm"], optimizer__clip_norm=10.0)
    assert read_starts(run)[-1]["changes"] == {"optimizer.clip_norm": {"from": None, "to": 10.0}}


def test_a_checkpoint_that_was_being_replaced_is_one_to_go_on_from(shapes, run):
    """A process that was killed in between: another config is refused as with any checkpoint."""
    checkpoints = run / "checkpoints"
    kept = {step: checkpoints / str(step) for step in steps_on_disk(run)}
    for path in kept.values():
        path.rename(path.with_name(f"{path.name}.replaced"))
    with pytest.raises(UserError, match="steps was 6 and is now 8"):
        go_on(shapes, run, (), steps=8)
    for path in kept.values():
        path.with_name(f"{path.name}.replaced").rename(path)


def test_a_folder_without_a_run_has_nothing_to_change(shapes, tmp_path):
    with pytest.raises(UserError, match="--change: there is no run in"):
        go_on(shapes, tmp_path, ["steps"])
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("left", ["", "5.orbax-checkpoint-tmp-17", "5.damaged"])
def test_a_run_without_a_checkpoint_begins_anew_without_a_change(left, shapes, tmp_path):
    save_config(tiny_config(shapes), tmp_path / "config.json")
    (tmp_path / "checkpoints" / left).mkdir(parents=True)
    other = tiny_config(shapes, batch_size=16)
    assert allowed_changes(other, tmp_path, (), own={}) == {}
    with pytest.raises(UserError, match=r"has no checkpoint yet, .* Leave --change out"):
        go_on(shapes, tmp_path, ["steps"])


@pytest.mark.parametrize("change", [["stpes"], []])
def test_a_wrong_change_is_found_before_the_data_are_read(change, shapes, run, monkeypatch):
    monkeypatch.setattr(training, "open_sources", lambda _: pytest.fail("read"))
    with pytest.raises(UserError, match="--change"):
        go_on(shapes, run, change, steps=8)


def test_a_test_split_may_come_and_change_and_is_guarded_in_between(shapes, run):
    sets = {"data__test__root": str(shapes), "data__test__image_sets": ("val",)}
    go_on(shapes, run, ["data.test.root", "data.test.image_sets"], **sets)
    assert set(read_starts(run)[-1]["changes"]) == {"data.test.root", "data.test.image_sets"}
    lines = (run / "starts.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["data"]["test"] = "another"
    (run / "starts.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    with pytest.raises(UserError, match="of test have the fingerprint"):
        go_on(shapes, run, **sets)
    sets["data__test__image_sets"] = ("train",)
    go_on(shapes, run, ["data.test.image_sets"], **sets)
    assert json.loads((run / "report.json").read_text())["protocol"]["split"] == "test"


def test_a_named_setting_of_the_hardware_is_recorded_and_an_old_failure_forgotten(shapes, run):
    """What was left of a step that was not finite is another start's."""
    for name in ("nonfinite.json", "nonfinite_process_1.json"):
        (run / name).touch()
    go_on(shapes, run, ["log_every_steps"], log_every_steps=3)
    assert list(read_starts(run)[-1]["changes"]) == ["log_every_steps"]
    assert not list(run.glob("nonfinite*"))


def test_the_verb_takes_the_names(shapes, run, capsys):
    file = run / "asked_for.json"
    save_config(tiny_config(shapes), file)
    command = ["train", "--config", str(file), "--workdir", str(run), "--config.loss.box_weight=2"]
    assert main(command) == 2
    assert "--change loss.box_weight" in capsys.readouterr().err
    assert main([*command, "--change", "steps,loss.box_weight"]) == 0
    assert read_config(run / "config.json").loss.box_weight == 2.0
