"""What the endpoint is told, and artefacts of the original that it serves."""

import functools
import tarfile

import numpy as np
import pytest
from weights.sagemaker_files import WIDTH, Made

from ssd_jax.cli import build_parser, main
from ssd_jax.commands.sagemaker import PAYLOAD_VARIABLE, VARIABLES
from ssd_jax.errors import UserError
from ssd_jax.importing import import_weights
from ssd_jax.sagemaker.original import holds_original, imported_original


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

    def opened(model, engine):
        raise UserError(f"opened {asked.update(model=model, engine=engine)}")

    monkeypatch.setattr("ssd_jax.export.exported.open_exported", opened)
    (tmp_path / "model").mkdir()
    words = ["sagemaker", "serve", "--root", str(tmp_path), "--port", "0", *options.split()]
    names = ("engine", "batches", "queue", "max_megabytes", "max_megapixels")
    given = build_parser().parse_args(words)
    assert tuple(getattr(given, name) for name in names) == expected
    assert main(words) == 2
    assert asked == {"model": tmp_path / "model", "engine": expected[0] or "auto"}


@pytest.mark.parametrize(
    ("name", "text", "option", "expected"),
    [
        ("SSD_JAX_ENGINE", "foo", "--engine", "is not one of auto, jax, onnxruntime, openvino"),
        ("SSD_JAX_BATCHES", "many", "--batches", "is not a list of batch sizes such as 1,4"),
        ("SSD_JAX_QUEUE", "abc", "--queue", "is not a whole number"),
        ("SSD_JAX_MAX_MEGAPIXELS", "0", "--max-megapixels", "is not at least 1"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "6.5", "--max-megabytes", "is not a whole number"),
    ],
)
def test_a_wrong_word_in_the_environment_is_one_message(
    name, text, option, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit, match="2"):
        main(["sagemaker", "serve", "--root", str(tmp_path)])
    told = capsys.readouterr().err
    assert f"argument {option}: " in told
    assert f"{text!r} (the environment variable {name}) " in told
    assert expected in told


def test_a_folder_of_the_model_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["sagemaker", "serve", "--root", str(tmp_path), "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path}/model: there is no such folder" in told
    assert "or give another --root" in told


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """`/opt/ml` of an endpoint that was given an artefact of the original."""
    root = tmp_path_factory.mktemp("original")
    archive = Made("vgg-16", image_size=300, num_classes=2).write(root / "model.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(root / "volume", filter="data")
    (root / "model").mkdir()
    for path in (root / "volume").iterdir():  # as volumes are mounted
        (root / "model" / path.name).symlink_to(path)
    return root


def test_an_artefact_of_the_original_is_served(original, monkeypatch):
    answers = []

    def answer(engine, listener, **words):
        canvas = np.zeros((1, engine.canvas, engine.canvas, 3), np.uint8)
        answers.append(
            (
                engine.engine,
                engine.classes,
                engine.predict(canvas, np.array([[300, 300]], np.int32)),
            )
        )
        return False

    thin = functools.partial(import_weights, assignments=[("model.width", str(WIDTH))])
    monkeypatch.setattr("ssd_jax.importing.import_weights", thin)
    monkeypatch.setattr("ssd_jax.serve.server.serve", answer)
    assert main(["sagemaker", "serve", "--root", str(original), "--port", "0"]) == 0
    ((engine, classes, found),) = answers
    assert (engine, classes) == ("jax", ("class_0", "class_1"))
    assert found.valid.any()


def test_what_macos_adds_to_an_artefact_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "._model_algo_1-0000.params").touch()
    assert not holds_original(tmp_path)
    (tmp_path / "model_algo_1-0000.params").touch()
    assert holds_original(tmp_path)
    found = []

    def look(archive, _):
        with tarfile.open(archive) as tar:
            found.extend(tar.getnames())

    monkeypatch.setattr("ssd_jax.importing.import_weights", look)
    with imported_original(tmp_path):
        assert found == ["model_algo_1-0000.params"]


def test_another_engine_does_not_run_an_artefact_of_the_original(original, monkeypatch, capsys):
    words = ["sagemaker", "serve", "--root", str(original)]
    assert main([*words, "--engine", "onnxruntime"]) == 2
    assert "ssd-jax weights import" in capsys.readouterr().err
    monkeypatch.setenv("SSD_JAX_ENGINE", "openvino")
    assert main(words) == 2
    assert "'openvino' (the environment variable SSD_JAX_ENGINE)" in capsys.readouterr().err
