"""How a job ends: the model that it leaves, and what it says when it fails."""

import os
import pathlib
import shutil
import signal
import struct
import subprocess
import types

import pytest
from sagemaker.opt_ml import write_config
from sagemaker.small_job import HYPERPARAMETERS, command, prepare

from ssd_jax.cli import main
from ssd_jax.config import save_config
from ssd_jax.data import codes
from ssd_jax.data.sources.recordio_file import frame
from ssd_jax.errors import DataError, NotTogether, Stopped, UserError
from ssd_jax.sagemaker.log import logger
from ssd_jax.sagemaker.train import _leave_results
from ssd_jax.train.stopping import Stopping
from ssd_jax.train.watchdog import EXIT_STALLED


def train(root, capsys):
    code = main(command(root)[2:])
    return code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mini_batch_siz": "8"},
            "Additional properties are not allowed ('mini_batch_siz' was unexpected)",
        ),
        ({"num_classes": "2"}, "num_classes is 2, but the train channel has 3 classes"),
        ({"use_pretrained_model": "1"}, "SSD_JAX_PRETRAINED_VGG16 does not say"),
        ({"label_width": "6"}, "ClientError: Invalid parameter value 'label_width': SSD183 "),
    ],
)
def test_what_the_user_did_wrong_stands_in_the_failure_file(
    changes, message, shapes, tmp_path, capsys, monkeypatch
):
    monkeypatch.delenv("SSD_JAX_PRETRAINED_VGG16", raising=False)
    root = prepare(tmp_path, shapes, **changes)
    code, log = train(root, capsys)
    assert code == 2
    failure = (root / "output/failure").read_text()
    assert failure.startswith("ClientError: ")
    assert message in failure[:1024]
    assert message in log
    assert not (root / "model").exists()


@pytest.mark.parametrize(
    ("label", "code"),
    [
        (struct.pack("<IfQQ", 0, 1, 0, 0), "2 SSD144, first: "),  # of a classification
        (struct.pack("<IfQQ7f", 7, 0, 0, 0, 2, 5, 0, 10, 10, 90, 90), "2 SSD132, first: "),
    ],
)
def test_why_none_of_the_data_can_be_used_stands_in_the_failure_file(
    label, code, shapes, tmp_path, capsys
):
    root = prepare(tmp_path, shapes)
    records = root / "input/data/train/data.rec"
    records.write_bytes(frame(label + b"image") * 2)
    records.with_suffix(".idx").unlink(missing_ok=True)
    assert train(root, capsys)[0] == 2
    failure = (root / "output/failure").read_text()[:1024]
    assert failure.startswith("ClientError: SSD103 ")
    assert f"{code}{records}, record 0" in failure


def test_a_root_that_is_not_there_is_not_made(tmp_path, capsys):
    assert main(["sagemaker", "train", "--root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_whose_name_is_not_utf_8_does_not_empty_the_failure_file(shapes, tmp_path, capsys):
    root = prepare(tmp_path, shapes)
    (root / "input/data/train" / os.fsdecode(b"\xff.rec")).touch()
    assert train(root, capsys)[0] == 2
    failure = (root / "output/failure").read_text()
    assert "the channel train has 2 files" in failure
    assert "udcff.rec" in failure


@pytest.mark.parametrize("hosts", ["algo-1", [1], None])
def test_hosts_are_a_list_of_names(hosts, shapes, tmp_path, capsys):
    root = prepare(tmp_path, shapes)
    write_config(root, "resourceconfig.json", {"current_host": "algo-1", "hosts": hosts})
    assert train(root, capsys)[0] == 2
    assert "expected current_host and the list hosts" in (root / "output/failure").read_text()


def test_hosts_that_do_not_meet_are_named(shapes, tmp_path, capsys, monkeypatch):
    def alone(**_):
        raise NotTogether("waited 300 s for 1 of 2 processes", "Give --coordinator")

    monkeypatch.setattr("ssd_jax.cluster.start", alone)
    root = prepare(tmp_path, shapes)
    names = {"current_host": "algo-1", "hosts": ["algo-2", "algo-1"]}
    write_config(root, "resourceconfig.json", names)
    assert train(root, capsys)[0] == 2
    failure = (root / "output/failure").read_text().splitlines()[0]
    assert "1 of 2 processes. The processes are 0 on algo-1, 1 on algo-2. Start" in failure
    assert "--" not in failure


def test_a_label_of_the_validation_that_is_too_wide_is_told_as_the_original_tells_it(
    shapes, tmp_path, capsys, monkeypatch
):
    def too_wide(*_, **__):
        raise DataError(codes.LABEL_WIDTH_SMALL, "val.rec, record 1", "too wide", "Set it to 9")

    root = prepare(tmp_path, shapes)
    monkeypatch.setattr("ssd_jax.sagemaker.train.run_training", too_wide)
    assert train(root, capsys)[0] == 2
    failure = (root / "output/failure").read_text()
    assert failure.startswith("ClientError: Invalid parameter value 'label_width': SSD183 val.rec")


def test_another_run_in_the_checkpoints_is_told_in_the_terms_of_a_job(
    shapes, tmp_path, capsys, monkeypatch
):
    def begin(config, workdir, **_):
        (workdir / "checkpoints/2").mkdir(parents=True)
        save_config(config, workdir / "config.json")
        raise Stopped("stopped")

    root = prepare(tmp_path, shapes)
    with monkeypatch.context() as patch:
        patch.setattr("ssd_jax.sagemaker.train.run_training", begin)
        patch.setattr("ssd_jax.sagemaker.train._leave_results", lambda *given: given[-1])
        assert train(root, capsys)[0] == 75
    hyperparameters = HYPERPARAMETERS | {"learning_rate": "0.002"}
    write_config(root, "hyperparameters.json", hyperparameters)
    assert train(root, capsys)[0] == 2
    failure = (root / "output/failure").read_text().splitlines()[0]
    assert "is now 0.0002 (hyperparameters: learning_rate). " in failure
    assert "another S3 URI" in failure
    assert "channel model" in failure
    assert "--" not in failure


@pytest.fixture
def exports(monkeypatch):
    """The commands of exports that leave empty files; they fail with what stands in `failing`.

    With what stands in `signals` the job gets SIGTERM meanwhile.
    """

    def export(command, **_):
        exports.commands.append(command)
        if exports.signals & set(command):
            os.kill(os.getpid(), signal.SIGTERM)
        if exports.failing & set(command):
            return subprocess.CompletedProcess(command, 1, "", "it finds something else")
        folder = command[command.index("--out") + 1]
        folder.mkdir()
        for name in ("meta.json", "probe.safetensors", "weights.safetensors"):
            (folder / name).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    exports = types.SimpleNamespace(commands=[], failing=set(), signals=set())
    monkeypatch.setattr("ssd_jax.sagemaker.train.run_child", export)
    return exports


@pytest.mark.parametrize(
    ("missing", "failing", "stopped", "onnx", "why"),
    [
        ((), set(), False, [True], "with an ONNX model"),
        (("onnx", "onnxruntime"), set(), False, [False], "onnx, onnxruntime of the extra onnx"),
        (("onnxruntime",), set(), False, [False], ": onnxruntime of the extra onnx is not"),
        ((), {"--onnx"}, False, [True, False], "only JAX can run it: it finds something else"),
        ((), set(), True, [False], "a stopped job has no time"),
    ],
)
def test_a_job_leaves_an_onnx_model_where_it_can(
    missing, failing, stopped, onnx, why, exports, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger.name)
    logger.propagate = True
    found = "ssd_jax.sagemaker.train.find_spec"
    monkeypatch.setattr(found, lambda name: None if name in missing else name)
    exports.failing = failing
    (tmp_path / "checkpoints").mkdir()
    request = Stopped("stopped") if stopped else None
    with Stopping() as stopping:
        assert _leave_results(tmp_path, tmp_path / "checkpoints", stopping, request) is request
    assert ["--onnx" in command for command in exports.commands] == onnx
    assert why in caplog.text
    assert (tmp_path / "model/meta.json").is_file()


def test_of_the_model_that_a_job_leaves_meta_json_comes_last(exports, tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(shutil, "move", lambda _, to: moved.append(to.name))
    monkeypatch.setattr(
        pathlib.Path, "iterdir", lambda path: (path / name for name in sorted(os.listdir(path)))
    )
    (tmp_path / "checkpoints").mkdir()
    with Stopping() as stopping:
        _leave_results(tmp_path, tmp_path / "checkpoints", stopping, None)
    assert "--no-archive" in exports.commands[0]
    assert sorted(moved[:2]) == ["probe.safetensors", "weights.safetensors"]
    assert moved[2:] == ["meta.json"]


def test_a_job_that_is_stopped_in_its_export_leaves_a_model_too(
    exports, shapes, tmp_path, capsys, monkeypatch
):
    root = prepare(tmp_path, shapes)
    (root / "checkpoints").mkdir()
    rest = root / ".export-of-a-job-that-was-killed"
    rest.mkdir()
    monkeypatch.setattr("ssd_jax.sagemaker.train.run_training", lambda *_, **__: None)
    monkeypatch.setattr("ssd_jax.sagemaker.train.find_spec", lambda name: name)
    exports.signals = {"--onnx", "--no-archive"}  # again, in the export that is quick
    assert train(root, capsys)[0] == 75
    assert ["--onnx" in command for command in exports.commands] == [True, False]
    assert (root / "model/meta.json").is_file()
    assert not list(root.glob(".export-*"))
    assert not (root / "output/failure").exists()


def test_a_request_that_comes_too_late_for_the_training_is_heard_by_the_export(
    exports, shapes, tmp_path, capsys, monkeypatch
):
    def finishes(*_, stopping, **__):
        stopping.hold()
        os.kill(os.getpid(), signal.SIGTERM)

    root = prepare(tmp_path, shapes)
    (root / "checkpoints").mkdir()
    monkeypatch.setattr("ssd_jax.sagemaker.train.run_training", finishes)
    monkeypatch.setattr("ssd_jax.sagemaker.train.find_spec", lambda name: name)
    assert train(root, capsys)[0] == 75
    assert ["--onnx" in command for command in exports.commands] == [False]
    assert (root / "model/meta.json").is_file()


def test_a_job_that_is_stopped_before_its_run_begins_has_nothing_to_leave(
    exports, shapes, tmp_path, capsys, monkeypatch
):
    def asked(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    root = prepare(tmp_path, shapes)
    monkeypatch.setattr("ssd_jax.sagemaker.train.run_training", asked)
    assert train(root, capsys)[0] == 75
    assert not exports.commands
    assert not (root / "output/failure").exists()


def test_hosts_without_a_folder_that_they_share_are_told_how_a_job_gets_one(
    shapes, tmp_path, capsys, monkeypatch
):
    def not_shared(folder, advice):
        raise UserError(f"{folder}: process 0 has another folder of that name. {advice}")

    root = prepare(tmp_path, shapes)
    monkeypatch.setattr("ssd_jax.cluster.check_shared", not_shared)
    assert train(root, capsys)[0] == 2
    failure = (root / "output/failure").read_text().splitlines()[0]
    assert f"{root}/checkpoints: process 0 has another folder of that name. Give a" in failure
    assert failure.endswith("(FSx for Lustre, EFS), with write access, as the channel checkpoints.")
    assert "--" not in failure


def test_an_error_of_ours_is_told_as_such(shapes, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    root = prepare(tmp_path, shapes)
    monkeypatch.setattr("ssd_jax.sagemaker.train.run_training", broken)
    with pytest.raises(RuntimeError):
        train(root, capsys)
    assert (root / "output/failure").read_text().startswith("AlgorithmError: out of memory")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("step: not done after 900 s"), "AlgorithmError: step: not done after 900 s"),
        (UserError("another host has other data"), "ClientError: another host has other data"),
    ],
)
def test_why_the_watchdog_ends_a_job_is_told_too(
    error, told, shapes, tmp_path, capsys, monkeypatch
):
    def stalled(*_, last_words, **__):
        last_words(error)
        raise SystemExit(EXIT_STALLED)

    root = prepare(tmp_path, shapes)
    monkeypatch.setattr("ssd_jax.sagemaker.train.run_training", stalled)
    with pytest.raises(SystemExit):
        train(root, capsys)
    assert (root / "output/failure").read_text().startswith(told)
