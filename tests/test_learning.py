"""The quick start learns what it promises."""

import pathlib

import jax
import pytest

from ssd_jax.config import load_config
from ssd_jax.data.shapes import write_shapes
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"


@pytest.mark.long
def test_the_quick_start_reaches_its_bar(tmp_path, optimised_steps):
    write_shapes(tmp_path / "shapes", train=3000, val=300, seed=0)
    config = load_config(str(CONFIG))
    for split in ("train", "val"):
        config.data[split].root = str(tmp_path / "shapes")
    measured = run_training(config, tmp_path / "run", mesh=make_mesh(jax.devices()[:2]))
    assert measured.evaluation.result.map11 >= 0.95
