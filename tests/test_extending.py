"""The script of docs/extending.md."""

import pathlib
import re

from tiny import tiny_config

from ssd_jax import config as configs
from ssd_jax.cli import main

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"


def test_a_loop_with_a_loss_of_its_own_leaves_a_run(shapes, tmp_path, monkeypatch, capsys):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs, "load_config", lambda _: tiny_config(shapes))
    exec(compile(script, str(PAGE), "exec"), {})
    assert "mAP@.5" in capsys.readouterr().out
    assert main(["evaluate", "--workdir", "runs/own_loss"]) == 0
    assert "mAP@.5" in capsys.readouterr().out.splitlines()[-1]


def test_every_place_that_it_names_is_there():
    package = PAGE.parents[1] / "ssd_jax"
    named = set(re.findall(r"`((?:models|ops|train|evaluation|data|weights)/[\w/.]*|\w+\.py)`",
                           PAGE.read_text()))  # fmt: skip
    assert len(named) > 10
    assert [name for name in named if not (package / name).exists()] == []
