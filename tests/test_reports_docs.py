"""What docs/reports.md shows is run as it stands there."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from tiny import tiny_config

from ssd_jax import config as configs
from ssd_jax.cli import main

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "reports.md"


def snippet(language, word):
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (found,) = (block for block in blocks if word in block)
    return found


def run(text):
    names = {}
    exec(compile(text, str(PAGE), "exec"), names)
    return names


def test_a_run_is_pruned_by_an_observer_and_still_compared(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs, "load_config", lambda _: tiny_config(shapes))
    run(snippet("python", "class Pruned").replace("(1e-3, 4e-3)", "(1e-3,)"))
    assert re.search(r"rate 0\.001: 0\.\d+ at step 4\n", capsys.readouterr().out)
    told = (tmp_path / "runs/rate_0.001/metrics.jsonl").read_text().splitlines()
    assert json.loads(told[-1])["split"] == "val"
    assert main(["report", "compare", "runs/rate_0.001"]) == 0
    assert "rate_0.001 (unfinished, step 4)" in capsys.readouterr().out


def test_an_observer_of_five_lines_tells_a_tracker(tmp_path, monkeypatch):
    logged = []

    class Tracker:
        def init(self, **_):
            return self

        def log(self, values, step):
            logged.append((step, values))

    def run_training(config, workdir, *, observers):
        for observer in observers:
            observer(3, "val", {"epoch": 1.0, "map_voc07": 0.5})

    monkeypatch.setitem(sys.modules, "wandb", Tracker())
    config = configs.default_config()
    names = {"config": config, "workdir": tmp_path, "run_training": run_training}
    exec(compile(snippet("python", "import wandb"), str(PAGE), "exec"), names)
    assert logged == [(3, {"val/epoch": 1.0, "val/map_voc07": 0.5})]


def test_a_loop_over_seeds_gives_commands_that_are_known(tmp_path):
    """A stand-in writes down how it is called."""
    (tmp_path / "runs").mkdir()
    for seed in range(3):
        (tmp_path / f"runs/bccd_{seed}").mkdir()
    stand_in = tmp_path / "ssd-jax"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", snippet("sh", "for seed in")], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True,
    )  # fmt: skip
    *trainings, comparison = done.stdout.splitlines()
    assert trainings == [
        f"train --config configs/bccd.py --workdir runs/bccd_{seed} --config.seed={seed}"
        for seed in range(3)
    ]
    assert comparison.split()[:5] == ["report", "compare", *(f"runs/bccd_{n}" for n in range(3))]


def test_pandas_reads_a_run_and_a_comparison(tiny_run, tmp_path, monkeypatch):
    pytest.importorskip("pandas", reason="pandas is no part of the package")
    monkeypatch.chdir(tmp_path)
    copies = [shutil.copytree(tiny_run, tmp_path / "runs" / name) for name in ("bccd", "b")]
    config = configs.read_config(copies[1] / "config.json")
    config.optimizer.learning_rate = 0.5
    configs.save_config(config, copies[1] / "config.json")
    assert main(["report", "compare", *map(str, copies), "--json", "runs.jsonl"]) == 0
    names = run(snippet("python", "import pandas"))
    assert names["best"]["step"] in (4, 6)
    assert names["hours"].is_monotonic_increasing
    assert names["table"]["count"].to_dict() == {0.001: 1, 0.5: 1}
