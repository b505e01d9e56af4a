"""`ssd-jax serve` on a trained network."""

import pathlib
import socket
import sys
import time

import numpy as np
import pytest
from running import running

from ssd_jax.answers import normalised
from ssd_jax.cli import build_parser, main
from ssd_jax.commands import serve
from ssd_jax.data.open import open_data
from ssd_jax.detector import Detector
from ssd_jax.errors import UserError


@pytest.fixture(scope="module")
def pictures(shapes):
    source = open_data(shapes, split=("val",))
    return [source.read_image(index) for index in range(3)]


@pytest.fixture(scope="module")
def expected(tiny_run, pictures):
    """[class, score, xmin, ymin, xmax, ymax] of each picture."""
    return [
        np.array(normalised(found)["prediction"]) for found in Detector.load(tiny_run)(pictures)
    ]


def test_few_batch_sizes_are_compiled_on_a_cpu(monkeypatch):
    assert serve.default_batches("jax") == (1, 4)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert serve.default_batches("onnxruntime") == (1, 4)
    assert serve.default_batches("jax") == (1, 2, 4, 8, 16)


def test_a_run_is_served(tiny_run, tmp_path, pictures, expected):
    command = ["-m", "ssd_jax", "serve", "--workdir", tiny_run, "--port", "0", "--batches", "1"]
    with running(command, tmp_path, SSD_JAX_TOKEN="key") as it:
        it.wait_until_healthy()
        assert set(it.wait_for("ready")["batch_seconds"]) == {"1"}
        assert it.post(pictures[0]).status_code == 401
        it.client.headers["Authorization"] = "Bearer key"
        assert it.client.get("/metadata").json()["classes"] == ["cross", "ring", "triangle"]
        alone = [it.post(each).json() for each in pictures]
        files = [("pictures", ("name", each)) for each in pictures]
        together = it.client.post("/invocations", files=files).json()["results"]
        assert it.stop() == 0
    for wanted, *answers in zip(expected, alone, together, strict=True):
        for answer in answers:
            np.testing.assert_array_equal(np.array(answer["prediction"]), wanted)


def test_the_token_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "token"
    path.write_text(" a key\n")
    monkeypatch.delenv(serve.TOKEN_VARIABLE, raising=False)
    assert serve.read_token(None) is None
    assert serve.read_token(path) == "a key"
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "another")
    assert serve.read_token(None) == "another"
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty, expected a token"):
        serve.read_token(path)
    path.write_bytes("schlüssel".encode("latin-1"))
    with pytest.raises(UserError, match=r"token is not text in UTF-8, expected a token\.$"):
        serve.read_token(path)
    monkeypatch.setenv(serve.TOKEN_VARIABLE, "\udcfc")
    with pytest.raises(UserError, match="SSD_JAX_TOKEN is not text in UTF-8"):
        serve.read_token(None)


# A server whose engine compiles for a minute.
COMPILES = """
import sys
from painted import PaintedEngine
from ssd_jax.cli import main
from ssd_jax.commands import serve
serve.open_detector = lambda options: PaintedEngine(warm_up=60)
sys.exit(main([*sys.argv[1:], "--port", "0", "--batches", "1"]))
"""


@pytest.mark.parametrize("verb", [["serve", "--model"], ["sagemaker", "serve", "--root"]])
def test_sigterm_ends_a_server_that_still_compiles(verb, tmp_path):
    (tmp_path / "model").mkdir()
    here = str(pathlib.Path(__file__).parent)
    with running(["-c", COMPILES, *verb, tmp_path], tmp_path, PYTHONPATH=here) as it:
        assert it.client.get("/ping").status_code == 503
        began = time.monotonic()
        assert it.stop() == 0
        assert time.monotonic() - began < 20
        assert it.events("stopped")  # what was written to a pipe or a file is not lost


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batches", "0,1"],
        ["--max-megapixels", "129"],
        ["--queue", "-1"],
        ["--port", "80000"],
        [],
    ],
)
def test_settings_that_cannot_be(arguments, capsys):
    what = ["--workdir", "run"] if arguments else []
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["serve", *what, *arguments])
    assert (arguments or ["--model"])[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("serve --model m --step 1", "serve: error: --step cannot be used with --model"),
        ("serve --workdir r --engine jax", "serve: error: --engine cannot be used with --workdir"),
        ("predict --model m --step 1 p --out o", "predict: error: --step cannot be used with"),
        ("predict --workdir r --engine jax p --out o", "error: --engine cannot be used with"),
    ],
)
def test_options_of_the_other_kind_of_detector(arguments, message, capsys):
    assert main(arguments.split()) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model_is_one_message(tmp_path, capsys):
    assert main(["serve", "--model", str(tmp_path), "--port", "0"]) == 2
    assert f"serve: error: {tmp_path} is not an exported detector" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_the_model_is_opened(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", "nowhere", "--port", str(port)]) == 2
        assert f"error: port {port} is in use. Choose another --port." in capsys.readouterr().err


def test_without_its_packages_it_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "ssd_jax.serve.server")
    assert main(["serve", "--workdir", "run"]) == 2
    assert "needs the package uvicorn" in capsys.readouterr().err
