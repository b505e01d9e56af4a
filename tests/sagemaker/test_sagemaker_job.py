"""A whole training job under a folder of its own, and the endpoint of what it leaves."""

import json
import pathlib
import re
import shutil
import time
from importlib.util import find_spec
from socket import gethostname

import jax
import numpy as np
import pytest
from distributed.processes import finish, run_processes, start_processes, told, wait_until
from sagemaker.opt_ml import channel, write_config, write_job
from sagemaker.small_job import HYPERPARAMETERS, QUICK, command, prepare
from starlette.testclient import TestClient

from ssd_jax.answers import normalised
from ssd_jax.cli import build_parser, main
from ssd_jax.config import read_config, split_assignments
from ssd_jax.detector import Detector, load_trained
from ssd_jax.errors import UserError
from ssd_jax.importing import start_from
from ssd_jax.models.initialise import init_variables
from ssd_jax.sagemaker.channels import find_channels
from ssd_jax.sagemaker.hyperparameters import parse_hyperparameters
from ssd_jax.sagemaker.log import EpochLog, logger
from ssd_jax.sagemaker.train import ONNX_PACKAGES, _class_names, _hosts, build_config
from ssd_jax.serve.app import Service
from ssd_jax.sharding import make_mesh

# As they are given to CloudWatch for the original's log.
PATTERNS = {
    "mAP": r"validation mAP <score>=\((\S+)\)",
    "cross_entropy": r"train cross_entropy <loss>=\((\S+)\)",
    "smooth_l1": r"train smooth_l1 <loss>=\((\S+)\)",
    "progress": r"completed (\S+) % of epochs",
}


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
    other = values | {"num_classes": 4}
    with pytest.raises(
        UserError, match=r"num_classes is 4, but .* has 3: .*model\.tar\.gz\. Give num_classes 3"
    ):
        build_config(other, find_channels(root), assignments=assignments)
    for change in (("weights.reinitialise", "params/heads/*"), ("weights.path", "")):
        build_config(other, find_channels(root), assignments=[*assignments, change])
    config.preprocess.mean = (0.0, 0.0, 0.0)
    with pytest.raises(
        UserError, match=r"config\.preprocess\.mean is \(0\.0, 0\.0, 0\.0\), but \(123"
    ):
        start_from(variables, config.weights.path, config=config)


def test_the_endpoint_answers_with_the_model_of_the_job(job, answer, monkeypatch):
    served = {}

    def serve(engine, listener, **words):
        served.update(words, engine=engine, host=listener.getsockname()[0])
        return False

    monkeypatch.setattr("ssd_jax.serve.server.serve", serve)
    for given, megabytes in (("", 20), ("6", 6)):
        monkeypatch.setenv("SAGEMAKER_MAX_PAYLOAD_IN_MB", given)
        assert main(["sagemaker", "serve", "--root", str(job[0]), "--port", "0"]) == 0
        assert served["limits"].bytes == megabytes * 2**20
        assert served["engine"].why
    assert served["host"] == "0.0.0.0"
    assert build_parser().parse_args(["sagemaker", "serve"]).port == 8080
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


def test_a_batch_transform_with_the_model_of_the_job(job, answer, tmp_path):
    picture, expected = answer
    words = ["--format", "transform", "--out", str(tmp_path)]
    assert main(["predict", "--model", str(job[0] / "model"), str(picture), *words]) == 0
    got = json.loads((tmp_path / f"{picture.name}.out").read_text())
    np.testing.assert_allclose(got["prediction"], expected, atol=1e-4)


def test_more_classes_than_the_data_have_and_a_wrong_count_of_samples(shapes, tmp_path, caplog):
    root = prepare(tmp_path, shapes)
    values = parse_hyperparameters(
        HYPERPARAMETERS
        | {"num_classes": "5", "num_training_samples": "21", "kv_store": "dist_async"}
    )
    logger.propagate = True
    config = build_config(values, find_channels(root), hosts=2)
    assert config.data.classes == ("cross", "ring", "triangle", "class_3", "class_4")
    assert "num_training_samples is 21, but the train channel has 20 images" in caplog.text
    assert "kv_store dist_async has no counterpart here" in caplog.text


def test_classes_that_are_numbers_go_on_as_numbers():
    assert _class_names(("0", "1"), 4) == ("0", "1", "2", "3")


def test_a_class_that_no_image_shows_gets_a_name_of_its_own():
    assert _class_names(("class_2", "dog"), 4) == ("class_2", "dog", "class_3", "class_4")


def test_every_host_has_them_in_the_same_order(tmp_path):
    write_config(tmp_path, "resourceconfig.json", {"hosts": ["b", "a"], "current_host": "b"})
    assert _hosts(tmp_path) == (("a", "b"), "b")


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"hosts": ["a"]}, "expected current_host and the list hosts"),
        ({"hosts": 1, "current_host": "a"}, "expected current_host and the list hosts"),
        ({"hosts": ["a"], "current_host": "b"}, r"current_host 'b' is not one of \['a'\]"),
    ],
)
def test_hosts_that_make_no_sense_are_refused(resources, message, tmp_path):
    write_config(tmp_path, "resourceconfig.json", resources)
    with pytest.raises(UserError, match=rf"resourceconfig\.json: .*{message}"):
        _hosts(tmp_path)


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


def two_hosts(shapes, tmp_path):
    """The roots of a job's two hosts, which share tmp_path/shared, and what starts the job."""
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
    return roots, [["-c", program, root, *verb] for root in roots]


def test_bad_data_of_one_host_are_told_on_both(shapes, tmp_path):
    roots, starts = two_hosts(shapes, tmp_path)
    for path in (roots[1] / "input/data/train").iterdir():
        path.write_bytes(b"no records")
    outcomes = run_processes(starts, devices=1)
    assert [each.returncode for each in outcomes] == [2, 2], told(outcomes)
    failures = [(root / "output/failure").read_text().splitlines()[0] for root in roots]
    assert failures[0] == f"ClientError: process 1 ({gethostname()}) stopped: " + (
        failures[1].removeprefix("ClientError: ")
    )
    assert "train" in failures[1]


@pytest.mark.long
def test_two_hosts_are_one_run_in_the_folder_that_they_share(shapes, tmp_path):
    roots, starts = two_hosts(shapes, tmp_path)
    first, second = run_processes(starts, devices=1, timeout=900)
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
