"""The scaling experiment: its model by hand, its figure, and a small measurement."""

import json
import pathlib
import subprocess
import sys

import pytest
from scripts import script

FILE = pathlib.Path(__file__).parents[1] / "experiments" / "scaling" / "measure.py"


@pytest.fixture(scope="module")
def scaling():
    with script("experiments/scaling/measure.py") as module:
        yield module


def test_the_model_by_hand(scaling):
    # 2 machines of 8: each GPU sends 2 * 7/8 of 450 MB at 450 GB/s, each machine 2 * 1/2 of it at
    # 12.5 GB/s: 1.75 ms and 36 ms.
    assert scaling.all_reduce_seconds(450e6, 16, 12.5e9) == pytest.approx(0.00175 + 0.036)
    assert scaling.all_reduce_seconds(450e6, 1, 12.5e9) == 0
    after, during = scaling.efficiency(0.03, 450e6, 16, 12.5e9)
    assert after == pytest.approx(30 / (30 + 37.75))
    assert during == pytest.approx(30 / (30 + 37.75 - 20))
    assert scaling.efficiency(0.06, 450e6, 16, 12.5e9)[1] == 1.0


def test_layouts_are_all_even_divisions(scaling):
    assert scaling.layouts(1) == [(1, 1)]
    assert scaling.layouts(5) == [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1)]


def test_the_committed_figures_tell_measured_modelled_and_claimed_apart(scaling, tmp_path):
    rows = [json.loads(line) for line in (FILE.parent / "results.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"measured", "modelled", "claimed"}
    assert [row for row in rows if row["kind"] == "claimed"] == scaling.claims()
    stated = [row for row in rows if row.get("step_time") == "stated"]
    assert stated == scaling.model(scaling.STATED, "stated")
    scaling.draw(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.long
def test_a_small_measurement(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        "from ssd_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.steps = 1\n"
        "    config.model.update({'backbone': 'small', 'image_size': 64, 'width': 0.05,\n"
        "                         'batch_norm': 'batch', 'batch_norm_group': 2})\n"
        "    config.data.canvas = 64\n"
        "    return config\n"
    )
    words = ["--config", config, "--images", "2", "--steps", "2", "--rounds", "1", "--out"]
    subprocess.run([sys.executable, FILE, *words, tmp_path], check=True, timeout=1200)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row["kind"] == "measured"]
    assert measured[0]["efficiency"] == 1.0
    assert all(row["images_per_second"] > 0 for row in measured)
    assert (tmp_path / "scaling.png").is_file()
