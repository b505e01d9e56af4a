"""A whole training job under a folder of its own, and the endpoint of what it leaves."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import types
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from distributed.processes import finish, run_processes, start_processes, wait_until
from sagemaker.opt_ml import channel, write_job
from starlette.testclient import TestClient

from ssd_jax.cli import build_parser, main
from ssd_jax.commands.sagemaker import PAYLOAD_VARIABLE, VARIABLES
from ssd_jax.config import read_config, split_assignments
from ssd_jax.data import codes
from ssd_jax.data.convert import run_convert
from ssd_jax.detector import Detector, load_trained
from ssd_jax.errors import DataError, UserError
from ssd_jax.importing import start_from
from ssd_jax.models.initialise import init_variables
from ssd_jax.sagemaker.channels import find_channels
from ssd_jax.sagemaker.hyperparameters import parse_hyperparameters
from ssd_jax.sagemaker.log import EpochLog, logger
from ssd_jax.sagemaker.train import ONNX_PACKAGES, _leave_results, build_config
from ssd_jax.serve.answers import normalised
from ssd_jax.serve.app import Service
from ssd_jax.sharding import make_mesh
from ssd_jax.train.watchdog import EXIT_STALLED

HYPERPARAMETERS = {
    "base_network": "vgg-16",
    "use_pretrained_model": "0",
    "num_classes": "3",
    "num_training_samples": "20",
    "mini_batch_size": "8",
    "epochs": "2",
    "lr_scheduler_step": "1",
    "optimizer": "rmsprop",
    # All but the heads, which spares the compiler most of the gradient.
    "freeze_layer_pattern": "^(conv|fc|relu4_3_scale|multi_feat_._conv_.x._conv).*",
}
# The container has no smaller network; these make it quick.
QUICK = [
    "--config.model.width=0.02",
    "--config.model.image_size=64",
    "--config.data.canvas=64",
    "--config.data.threads=0",
    "--config.augment.interpolations=linear",
    "--config.augment.jitter.probability=0",
    "--config.augment.expand.probability=0",
    "--config.augment.crop.min_ious=()",
    "--config.detect.candidates=50",
    "--config.detect.max_detections=20",
]
# As they are given to CloudWatch for the original's log.
PATTERNS = {
    "mAP": r"validation mAP <score>=\((\S+)\)",
    "cross_entropy": r"train cross_entropy <loss>=\((\S+)\)",
    "smooth_l1": r"train smooth_l1 <loss>=\((\S+)\)",
    "progress": r"completed (\S+) % of epochs",
}


def prepare(root, shapes, **changes):
    for name, split in (("train", "train"), ("validation", "val")):
        folder = root / "input/data" / name
        folder.mkdir(parents=True)
        run_convert(str(shapes), str(folder / "data.rec"), split=(split,))
    write_job(
        root,
        channels={name: channel() for name in ("train", "validation")},
        hyperparameters=HYPERPARAMETERS | changes,
    )
    return root


def command(root):
    return ["-m", "ssd_jax", "sagemaker", "train", "--root", str(root), *QUICK]


def train(root, capsys):
    code = main(command(root)[2:])
    return code, capsys.readouterr().out


@pytest.fixture(scope="module")
def job(shapes, tmp_path_factory):
    """The folder of a finished job, and its log."""
    root = prepare(tmp_path_factory.mktemp("ml"), shapes)
    (done,) = run_processes([command(root)], devices=1, timeout=600)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def test_the_log_is_read_by_the_patterns_of_the_original(job):
    _, log = job
    found = {name: re.findall(pattern, log) for name, pattern in PATTERNS.items()}
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(PATTERNS, 2)
    assert found["progress"] == ["50.0", "100.0"]
    assert all(np.isfinite([float(value) for values in found.values() for value in values]))
    stamp = r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d INFO \d+\] "
    assert re.search(
        rf"{stamp}#quality_metric: host=algo-1, epoch=1, validation mAP <score>=\(", log
    )
    assert re.search(rf"{stamp}#quality_metric: host=algo-1, epoch=0, batch=2 train cross_ent", log)


def test_the_losses_of_the_log_are_those_of_the_run(job):
    root, log = job
    lines = (root / "checkpoints/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    told = [float(value) for value in re.findall(PATTERNS["cross_entropy"], log)]
    assert told == [record["class_loss"] for record in records if record["split"] == "train"]
    told = [float(value) for value in re.findall(PATTERNS["mAP"], log)]
    assert told == [record["map_mxnet"] for record in records if record["split"] == "val"]


def test_the_hyperparameters_became_the_config(job):
    root, _ = job
    config = read_config(root / "checkpoints/config.json")
    assert (config.steps, config.evaluate.every_steps, config.batch_size) == (4, 2, 8)
    assert config.optimizer.name == "rmsprop"
    assert config.data.classes == ("cross", "ring", "triangle")
    frozen = {path.split("/")[1] for path, rate in config.optimizer.rate_multipliers if not rate}
    assert frozen == {"backbone", "extras"}


def test_what_is_frozen_stays_and_the_heads_learn(job):
    config = read_config(job[0] / "checkpoints/config.json")
    trained = load_trained(config, job[0] / "checkpoints", mesh=make_mesh(jax.devices()[:1]))
    first = init_variables(trained.network.model, 64, seed=config.seed)["params"]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first, trained.variables["params"])
    assert not any(jax.tree.leaves([moved["backbone"], moved["extras"]]))
    assert all(jax.tree.leaves(moved["heads"]))


def test_what_is_left_is_where_sagemaker_looks_for_it(job):
    root, _ = job
    assert {path.name for path in root.iterdir()} == {"input", "model", "output", "checkpoints"}
    meta = json.loads((root / "model/meta.json").read_text())
    assert {*meta["files"], "meta.json"} == {path.name for path in (root / "model").iterdir()}
    assert ("model.onnx" in meta["files"]) == all(map(find_spec, ONNX_PACKAGES))
    assert (root / "output/data/report.json").is_file()
    assert not (root / "output/failure").exists()


@pytest.fixture(scope="module")
def answer(job, shapes):
    """A picture, and what `/invocations` must answer to it."""
    picture = next((shapes / "JPEGImages").iterdir())
    (found,) = Detector.load(job[0] / "checkpoints")([picture.read_bytes()])
    return picture, normalised(found)["prediction"]


def test_training_goes_on_from_the_artefact_of_a_job(job, shapes, tmp_path):
    root = prepare(tmp_path, shapes)
    model = root / "input/data/model"
    model.mkdir()
    # As SageMaker packs it.
    shutil.make_archive(str(model / "model"), "gztar", job[0] / "model")
    channels = json.loads((root / "input/config/inputdataconfig.json").read_text())
    channels["model"] = channel("application/x-sagemaker-model")
    write_job(root, channels=channels, hyperparameters=HYPERPARAMETERS)
    assignments = split_assignments(QUICK)
    values = parse_hyperparameters(HYPERPARAMETERS | {"use_pretrained_model": "1"})
    config = build_config(values, find_channels(root), assignments=assignments)
    assert config.weights.path == str(model / "model.tar.gz")

    trained = load_trained(config, job[0] / "checkpoints", mesh=make_mesh(jax.devices()[:1]))
    variables, report = start_from(
        jax.tree.map(np.zeros_like, trained.variables),
        config.weights.path,
        backbone="vgg16",
        config=config,
    )
    assert report.layout == "an exported detector of ours, vgg16"
    jax.tree.map(np.testing.assert_array_equal, variables, jax.device_get(trained.variables))
    config.preprocess.mean = (0.0, 0.0, 0.0)
    with pytest.raises(
        UserError, match=r"config\.preprocess\.mean is \(0\.0, 0\.0, 0\.0\), in that"
    ):
        start_from(variables, config.weights.path, config=config)


def test_the_endpoint_answers_with_the_model_of_the_job(job, answer, monkeypatch):
    served = {}
    monkeypatch.setattr("ssd_jax.serve.server.serve", lambda engine, **words: served.update(
        words, engine=engine
    ))  # fmt: skip
    for given, megabytes in (("", 20), ("6", 6)):
        monkeypatch.setenv("SAGEMAKER_MAX_PAYLOAD_IN_MB", given)
        assert main(["sagemaker", "serve", "--root", str(job[0])]) == 0
        assert served["limits"].bytes == megabytes * 2**20
        assert served["engine"].why
    assert (served["host"], served["port"]) == ("0.0.0.0", 8080)
    picture, expected = answer
    with TestClient(Service(served["engine"], batches=(1,)).app) as client:
        for _ in range(600):
            if client.get("/ping").status_code == 200:
                break
            time.sleep(0.1)
        got = client.post(
            "/invocations",
            content=picture.read_bytes(),
            headers={"Content-Type": "application/x-image"},
        )
    assert got.status_code == 200
    np.testing.assert_allclose(got.json()["prediction"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("environment", "options", "expected"),
    [
        ({}, "", (None, None, 64, 20, 64)),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, "", (None, None, 64, 20, 64)),
        (
            {"SSD_JAX_ENGINE": "openvino", "SSD_JAX_BATCHES": "1,2", "SSD_JAX_QUEUE": "9"},
            "",
            ("openvino", (1, 2), 9, 20, 64),
        ),
        (
            {"SSD_JAX_MAX_MEGABYTES": "7", "SSD_JAX_MAX_MEGAPIXELS": "8"}
            | {"SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"},
            "",
            (None, None, 64, 7, 8),
        ),
        (
            {"SSD_JAX_ENGINE": "openvino", "SSD_JAX_QUEUE": "none"},
            "--engine onnxruntime --batches 4 --queue 3 --max-megabytes 2 --max-megapixels 1",
            ("onnxruntime", (4,), 3, 2, 1),
        ),
    ],
)
def test_the_endpoint_takes_the_options_of_a_server_or_the_environment(
    environment, options, expected, tmp_path, monkeypatch
):
    for name in (*VARIABLES, PAYLOAD_VARIABLE):
        monkeypatch.setenv(name, environment.get(name, ""))
    asked = {}

    def opened(**words):
        raise UserError(f"opened {asked.update(words)}")

    monkeypatch.setattr("ssd_jax.serve.opening.open_engine", opened)
    words = ["sagemaker", "serve", "--root", str(tmp_path), *options.split()]
    names = ("engine", "batches", "queue", "max_megabytes", "max_megapixels")
    given = build_parser().parse_args(words)
    assert tuple(getattr(given, name) for name in names) == expected
    assert main(words) == 2
    assert asked == {
        "model": tmp_path / "model",
        "workdir": None,
        "engine": expected[0] or "auto",
        "step": None,
    }


def test_a_wrong_word_in_the_environment_is_one_message(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SSD_JAX_BATCHES", "many")
    with pytest.raises(SystemExit, match="2"):
        main(["sagemaker", "serve", "--root", str(tmp_path)])
    assert "argument --batches: invalid" in capsys.readouterr().err


def test_a_batch_transform_with_the_model_of_the_job(job, answer, tmp_path):
    picture, expected = answer
    words = ["--format", "transform", "--out", str(tmp_path)]
    assert main(["predict", "--model", str(job[0] / "model"), str(picture), *words]) == 0
    got = json.loads((tmp_path / f"{picture.name}.out").read_text())
    np.testing.assert_allclose(got["prediction"], expected, atol=1e-4)


def test_an_artefact_of_the_original_is_not_served(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_algo_1-0000.params").touch()
    assert main(["sagemaker", "serve", "--root", str(tmp_path)]) == 2
    assert "ssd-jax weights import" in capsys.readouterr().err


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


def test_more_classes_than_the_data_have_and_a_wrong_count_of_samples(shapes, tmp_path, caplog):
    root = prepare(tmp_path, shapes)
    values = parse_hyperparameters(
        HYPERPARAMETERS | {"num_classes": "5", "num_training_samples": "21"}
    )
    logger.propagate = True
    config = build_config(values, find_channels(root))
    assert config.data.classes == ("cross", "ring", "triangle", "class_3", "class_4")
    assert "num_training_samples is 21, but the train channel has 20 images" in caplog.text


@pytest.mark.parametrize(
    ("changes", "steps", "every"),
    [
        (["--config.steps=None", "--config.epochs=3"], 8, 2),
        (["--config.evaluate.every_steps=None", "--config.evaluate.every_epochs=0.5"], 4, 1),
        (["--config.evaluate.every_steps=None"], 4, 4),
        (["--config.evaluate.every_steps=9"], 4, 4),
    ],
)
def test_the_length_and_the_evaluations_may_be_given_in_any_way(
    changes, steps, every, shapes, tmp_path
):
    channels = find_channels(prepare(tmp_path, shapes))  # 20 images in batches of 8
    values = parse_hyperparameters(HYPERPARAMETERS | {"freeze_layer_pattern": ""})
    config = build_config(values, channels, assignments=split_assignments(QUICK + changes))
    assert (config.steps, config.evaluate.every_steps) == (steps, every)
    assert (config.epochs, config.evaluate.every_epochs) == (None, None)


def test_the_last_epoch_of_the_log_may_be_shorter(caplog):
    logger.propagate = True
    caplog.set_level("INFO", logger.name)
    tell = EpochLog(host="algo-1", steps=5, steps_per_epoch=2, batch_size=8, metric="map_mxnet")
    for step in (2, 4, 5):
        tell(step, "val", {"map_mxnet": 0.5})
    shares = [float(share) for share in re.findall(PATTERNS["progress"], caplog.text)]
    np.testing.assert_allclose(shares, [40, 80, 100])
    assert re.findall(r"epoch=(\d), validation", caplog.text) == ["0", "1", "2"]


@pytest.fixture
def exports(monkeypatch):
    """The commands of exports that leave empty files, and fail with what stands in `failing`."""

    def export(command, **_):
        exports.commands.append(command)
        if exports.failing & set(command):
            return subprocess.CompletedProcess(command, 1, "", "it finds something else")
        folder = command[command.index("--out") + 1]
        folder.mkdir()
        for name in ("meta.json", "probe.safetensors", "weights.safetensors"):
            (folder / name).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    exports = types.SimpleNamespace(commands=[], failing=set())
    monkeypatch.setattr(subprocess, "run", export)
    return exports


@pytest.mark.parametrize(
    ("missing", "failing", "stopped", "onnx", "why"),
    [
        ((), set(), False, [True], "with an ONNX form"),
        (("onnx", "onnxruntime"), set(), False, [False], "onnx, onnxruntime of the extra onnx"),
        (("onnxruntime",), set(), False, [False], ": onnxruntime of the extra onnx is not"),
        ((), {"--onnx"}, False, [True, False], "JAX alone can run it: it finds something else"),
        ((), set(), True, [False], "a job that was stopped"),
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
    _leave_results(tmp_path, tmp_path / "checkpoints", stopped=stopped)
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
    _leave_results(tmp_path, tmp_path / "checkpoints", stopped=False)
    assert "--no-archive" in exports.commands[0]
    assert sorted(moved[:2]) == ["probe.safetensors", "weights.safetensors"]
    assert moved[2:] == ["meta.json"]


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


@pytest.mark.long
def test_two_hosts_are_one_run_in_the_folder_that_they_share(shapes, tmp_path):
    hosts, roots = ("127.0.0.1", "localhost"), (tmp_path / "a", tmp_path / "b")
    (tmp_path / "shared").mkdir()
    for host, root in zip(hosts, roots, strict=True):
        prepare(root, shapes, mini_batch_size="4")
        (root / "input/data/checkpoints").symlink_to(tmp_path / "shared")
        channels = {name: channel() for name in ("train", "validation", "checkpoints")}
        hyperparameters = HYPERPARAMETERS | {"mini_batch_size": "4"}
        write_job(root, channels=channels, hyperparameters=hyperparameters, hosts=hosts, host=host)
    # On each host the place is the same: here the folder in which the process stands.
    program = "import os, sys; os.chdir(sys.argv[1]); from ssd_jax.cli import main; "
    program += "sys.exit(main(sys.argv[2:]))"
    verb = command(pathlib.Path("."))[2:]
    first, second = run_processes(
        [["-c", program, root, *verb] for root in roots], devices=1, timeout=900
    )
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "#quality_metric: host=127.0.0.1, epoch=1" in first.stdout
    assert "#quality_metric" not in second.stdout
    assert read_config(tmp_path / "shared/config.json").batch_size == 8
    assert (roots[0] / "model/meta.json").is_file()


@pytest.mark.long
def test_a_job_that_is_stopped_is_saved_leaves_a_model_and_goes_on(shapes, tmp_path):
    root = prepare(tmp_path, shapes, epochs="200")
    (running,) = processes = start_processes([command(root)], devices=1)
    metrics = root / "checkpoints/metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.read_text().count('"val"') > 1, processes)
    running.terminate()
    (stopped,) = finish(processes, timeout=300)
    assert stopped.returncode == 75, stopped.stderr
    assert (root / "model/meta.json").is_file()
    assert not (root / "output/failure").exists()
    steps = metrics.read_text().count('"train"')
    processes = start_processes([command(root)], devices=1)
    wait_until(lambda: metrics.read_text().count('"train"') > steps, processes)
    processes[0].terminate()
    (again,) = finish(processes, timeout=300)
    assert again.returncode == 75
    assert "resumed at step" in again.stdout


def test_help_of_the_verb_needs_no_jax():
    code = "import sys, ssd_jax.commands.sagemaker; print({'jax', 'numpy'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "set()"
