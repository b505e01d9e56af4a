"""The blocks of docs/extending.md, one after the other, and what they leave."""

import functools
import json
import pathlib
import re
import shutil
import sys

import cv2
import jax
import pytest
from hlo import QUICK
from tiny import tiny_config

from ssd_jax import config as configs
from ssd_jax.cli import main
from ssd_jax.detector import Detector
from ssd_jax.errors import UserError
from ssd_jax.export.exported import open_exported
from ssd_jax.report.starts import read_starts
from ssd_jax.runs.log import read_metrics
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh
from ssd_jax.train.compiled import compile_step

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page(shapes, tmp_path_factory):
    """The folder that they were run in, and their names."""
    folder, names = tmp_path_factory.mktemp("page"), {"__name__": "my_script"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr(
            "ssd_jax.runs.training.compile_step", functools.partial(compile_step, options=QUICK)
        )
        patch.setattr("ssd_jax.runs.training.make_mesh", lambda: make_mesh(jax.devices()[:1]))
        small = {"model__backbone": "small", "model__width": 0.1, "model__batch_norm": "none"}
        small |= {"log_every_steps": 5, "steps": 10}
        patch.setattr(configs, "load_config", lambda _: tiny_config(shapes, **small))
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            if file := re.match(r"# (\w+\.py)\n", block):
                (folder / file[1]).write_text(block)
            else:
                # One device compiles faster than eight.
                block = block.replace("make_mesh()", "make_mesh(jax.devices()[:1])")
                exec(compile(block, str(PAGE), "exec"), names)
        yield folder, names
        sys.modules.pop("my_backbones")


def test_a_run_of_own_parts_reports_them(page):
    folder, names = page
    run = folder / "runs/own"
    (start,) = read_starts(run)
    assert start["own"] == {"loss": "my_script.calm_loss", "augment": "my_script.noisy"}
    trained = [each for each in read_metrics(run / "metrics.jsonl") if each["split"] == "train"]
    assert [each["step"] for each in trained] == [5, 10]
    assert trained[0]["loss"] > trained[0]["calm"] > 0
    report = json.loads((run / "report.json").read_text())
    assert report["config"]["model"]["backbone"] == "my_backbones:Tiny"
    assert report["data"]["train"]["fingerprint"] == names["sources"]["train"].fingerprint
    assert report["protocol"]["images"] == 16
    # No other data are told to be those of the run.
    assert report["config"]["data"]["val"] == {"root": "", "image_sets": []}
    assert cv2.imread(str(run / "pictures/augmented.png")) is not None
    for shown in ("square", "loss: my_script.calm_loss; augment: my_script.noisy"):
        assert shown in (run / "report.html").read_text()


def test_the_verbs_use_an_own_backbone_and_the_loop_is_a_run(page, capsys):
    folder, _ = page
    assert main(["evaluate", "--workdir", str(folder / "runs/own_loop")]) == 0
    assert "mAP@.5" in capsys.readouterr().out.splitlines()[-1]
    runs = [str(folder / "runs" / name) for name in ("own", "own_loop")]
    assert main(["report", "compare", *runs, "--out", str(folder / "compared")]) == 0
    assert Detector.load(folder / "runs/own").classes == ("square",)


def test_an_export_never_imports_the_backbone(page, monkeypatch):
    folder, _ = page
    out = folder / "model"
    assert main(["export", "--workdir", str(folder / "runs/own"), "--out", str(out)]) == 0
    found = json.loads((out / "meta.json").read_text())["verification"]["found"]
    assert found.keys() == {"stablehlo"}
    module = sys.modules.pop("my_backbones")
    try:
        with pytest.raises(UserError, match="Tiny, and code that a file names is never imported"):
            open_exported(out)
        assert "my_backbones" not in sys.modules
    finally:
        sys.modules["my_backbones"] = module


@pytest.mark.parametrize("change", [(), ("loss",)])
def test_a_run_goes_on_with_the_functions_that_it_had(change, page, tmp_path):
    folder, names = page
    run = shutil.copytree(folder / "runs/own", tmp_path / "run")
    words = {"augment": names["noisy"], "sources": names["sources"], "change": change}
    if change:
        run_training(names["config"], run, **words)
        wanted = {"loss": {"from": "my_script.calm_loss", "to": None}}
        assert read_starts(run)[-1]["changes"] == wanted
        return
    message = "another loss: loss was my_script.calm_loss and is now that of config.loss.*--change"
    with pytest.raises(UserError, match=message):
        run_training(names["config"], run, **words)
    other = {**names["sources"], "val": names["squares"](15, seed=1)}
    with pytest.raises(UserError, match="annotations of val have the fingerprint"):
        run_training(names["config"], run, loss=names["calm_loss"], **words | {"sources": other})


def test_other_sources_than_splits_and_classes_are_refused(page, tmp_path):
    _, names = page
    train = names["sources"]["train"]
    with pytest.raises(UserError, match=r"got the split 'valid', expected train, val or test"):
        run_training(names["config"], tmp_path, sources={"valid": train})
    with pytest.raises(UserError, match=r"sources\['val'\]: got the classes square, expected "):
        run_training(names["config"], tmp_path, sources={"val": train})


def test_several_image_sizes_have_no_own_functions(page, tmp_path):
    _, names = page
    config = names["config"].copy_and_resolve_references()
    config.augment.image_sizes = (64, 96)
    with pytest.raises(UserError, match=r"image_sizes: got \(64, 96\), expected one size"):
        run_training(config, tmp_path, loss=names["calm_loss"], sources=names["sources"])


def test_every_place_that_it_names_is_there():
    package = PAGE.parents[1] / "ssd_jax"
    named = set(re.findall(r"`((?:models|ops|train|evaluation|data|weights)/[\w/.]*|\w+\.py)`",
                           PAGE.read_text()))  # fmt: skip
    named.discard("my_backbones.py")
    assert len(named) > 10
    assert [name for name in named if not (package / name).exists()] == []
