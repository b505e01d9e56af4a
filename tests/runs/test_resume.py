"""Stopped at any step and started again, a run ends with the same bits."""

import json
import shutil

import jax
import pytest
from same_run import assert_same_run, losses
from tiny import tiny_config

from ssd_jax.config import save_config
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.errors import UserError
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def run_on_8(shapes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run8")
    run_training(tiny_config(shapes), workdir, mesh=make_mesh())
    return workdir


@pytest.mark.parametrize(("devices", "stopped_at"), [(1, 1), (1, 4), (8, 3)])
def test_a_resumed_run_is_bit_equal_to_the_unbroken_one(
    devices, stopped_at, shapes, tiny_run, run_on_8, tmp_path
):
    unbroken = tiny_run if devices == 1 else run_on_8
    config = tiny_config(shapes)
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(unbroken / name, tmp_path)
    for step in range(1, stopped_at + 1):
        shutil.copytree(unbroken / f"checkpoints/{step}", tmp_path / f"checkpoints/{step}")

    run_training(config, tmp_path, mesh=make_mesh(jax.devices()[:devices]))

    assert_same_run(tmp_path, unbroken, config)


def test_a_resumed_run_needs_no_weights_to_begin_with(shapes, tiny_run, tmp_path, capsys):
    config = tiny_config(shapes, weights__path=str(tmp_path / "gone.safetensors"))
    with pytest.raises(UserError, match=r"gone\.safetensors"):
        run_training(config, tmp_path / "first", mesh=make_mesh(jax.devices()[:1]))
    shutil.copytree(tiny_run / "checkpoints/4", tmp_path / "run/checkpoints/4")
    shutil.copy(tiny_run / "metrics.jsonl", tmp_path / "run")
    save_config(config, tmp_path / "run/config.json")
    run_training(config, tmp_path / "run", mesh=make_mesh(jax.devices()[:1]))
    assert "resumed at step 4 of 6" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", tiny_run, config)


def test_where_training_is_damaged_the_imported_weights_are_next(
    shapes, tiny_run, tmp_path, capsys
):
    for step, name in ((1, "0"), (4, "4")):
        shutil.copytree(tiny_run / f"checkpoints/{step}", tmp_path / f"checkpoints/{name}")
    config = tiny_config(shapes)
    save_config(config, tmp_path / "config.json")
    shutil.rmtree(tmp_path / "checkpoints/4/variables")
    mesh = make_mesh(jax.devices()[:1])
    with pytest.raises(UserError, match="have been renamed"):
        run_training(config, tmp_path, mesh=mesh)
    run_training(config, tmp_path, mesh=mesh)
    assert "starting with the imported weights" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["weights"] == {"imported": "import.txt is gone"}
    assert "import them into the new folder first" in (tmp_path / "report.html").read_text()


def test_one_and_eight_devices_train_alike(tiny_run, run_on_8):
    """The same batches, augmentation and statistics: only the order of summation differs.

    Later steps of this network, whose coarsest maps are single pixels, amplify the difference.
    """
    one, eight = (
        [record for record in losses(workdir) if record["split"] == "train"][:2]
        for workdir in (tiny_run, run_on_8)
    )
    for name in ("loss", "class_loss", "box_loss", "gradient_norm"):
        for a, b in zip(one, eight, strict=True):
            assert a[name] == pytest.approx(b[name], rel=2e-3), (name, a["step"])


def test_a_finished_run_is_not_trained_again(shapes, tiny_run, capsys):
    before = losses(tiny_run)
    # How a run is computed may change on the way.
    config = tiny_config(shapes, data__threads=1, data__cache="ram", log_every_steps=2)
    run_training(config, tiny_run, mesh=make_mesh(jax.devices()[:1]))
    assert losses(tiny_run) == before
    assert "resumed at step 6 of 6" in capsys.readouterr().out


def test_another_config_is_refused_with_the_difference(shapes, tiny_run):
    config = tiny_config(shapes, optimizer__learning_rate=0.5)
    with pytest.raises(
        UserError, match=r"learning_rate was 0\.001 and is now 0\.5\. .*weights\.path="
    ):
        run_training(config, tiny_run)


def test_the_same_data_may_lie_elsewhere_and_others_may_not(shapes, tiny_run, tmp_path, capsys):
    moved = shutil.copytree(shapes, tmp_path / "moved")
    mesh = make_mesh(jax.devices()[:1])
    run_training(tiny_config(moved), tiny_run, mesh=mesh)
    assert "resumed at step 6 of 6" in capsys.readouterr().out
    image = next((moved / "JPEGImages").iterdir())
    before = image.read_bytes()
    image.write_bytes(before + b"\0")
    with pytest.raises(UserError, match=r"other data: the images of (train|val) have"):
        run_training(tiny_config(moved), tiny_run, mesh=mesh)
    image.write_bytes(before)
    for annotation in (moved / "Annotations").iterdir():
        text = annotation.read_text()
        annotation.write_text(text.replace("<difficult>0", "<difficult>1"))
    with pytest.raises(UserError, match="other data: the annotations of train have the fingerpr"):
        run_training(tiny_config(moved), tiny_run, mesh=mesh)
    run_training(tiny_config(shapes), tiny_run, mesh=mesh)  # config.json as it was


def test_a_checkpoint_of_other_classes_is_refused(shapes, tiny_run, tmp_path):
    shutil.copytree(tiny_run / "checkpoints", tmp_path / "checkpoints")
    classes = (*open_voc(shapes, ("train",)).classes, "star")
    config = tiny_config(shapes, data__classes=classes)
    with pytest.raises(UserError, match=r"has 3 classes \(cross.*the run has 4 .*star"):
        run_training(config, tmp_path, mesh=make_mesh(jax.devices()[:1]))
