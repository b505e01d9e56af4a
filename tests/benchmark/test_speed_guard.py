"""`make bench-check`: what counts as slower; and the figure of the growth."""

import json
import pathlib

import pytest
from scripts import script

from ssd_jax.config import load_config

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "speed"


@pytest.fixture
def guard():
    with script("experiments/speed/check.py") as module:
        yield module


@pytest.fixture
def check(guard, monkeypatch, tmp_path):
    """The guard with a baseline of 2, without a network; `measured` is what it will measure."""
    waiting = []
    monkeypatch.setattr(guard, "contests_of", lambda _: ({"step": None}, "cpu"))
    monkeypatch.setattr(guard, "ratios", lambda *_: {"step": waiting.pop(0)})

    def run(*measured, write=False):
        waiting[:] = measured
        arguments = ["check.py", "--baseline", str(tmp_path / "baseline.json")]
        monkeypatch.setattr("sys.argv", arguments + ["--write"] * write)
        guard.main()
        return waiting

    run(2.0, write=True)
    return run


def test_as_fast_as_ever(check, capsys):
    assert check(2.29, 9.0) == [9.0]  # once is enough
    assert "2.290 times the bare loop; baseline   2.000, +15%" in capsys.readouterr().out


def test_slower_twice_is_slower(check):
    with pytest.raises(SystemExit, match="slower by more than 15%: step"):
        check(2.31, 2.31)


def test_slower_once_is_another_program_on_the_machine(check):
    assert check(9.0, 2.2) == []


def test_another_device_has_no_baseline(check, tmp_path):
    (tmp_path / "baseline.json").write_text(json.dumps({"tpu": {"ratios": {"step": 1.0}}}))
    with pytest.raises(SystemExit, match="has tpu, but not cpu"):
        check(2.0)


def test_a_baseline_is_of_a_config_a_device_and_its_cores(guard, monkeypatch):
    file = FOLDER.parents[1] / "configs/quickstart.py"
    config = load_config(str(file))
    monkeypatch.setattr("ssd_jax.hardware.cores", lambda: 2)
    baselines = json.loads((FOLDER / "baseline.json").read_text())
    assert guard.subject_of(file, config, "cpu") in baselines
    config.model.dtype = "bfloat16"
    of_gpu = guard.subject_of(file.with_name("voc.py:vgg16_64"), config, "NVIDIA H200")
    assert of_gpu == f"voc:vgg16_64, bfloat16, batch {config.batch_size}, NVIDIA H200"


def test_growth_is_drawn_beside_proportion(tmp_path):
    rows = [
        {"axis": axis, "size": size, "program": "train", "seconds": 0.1 * size, "bytes": 0}
        for axis in ("image size, px", "images of the data set")
        for size in (1, 10, 100)
    ]
    with script("experiments/speed/growth.py") as growth:
        growth.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000


def test_growth_keeps_the_earlier_rows_of_the_same_config(tmp_path, monkeypatch):
    def row(axis, seconds):
        return {"axis": axis, "size": 1, "program": "train", "seconds": seconds, "bytes": 1}

    this = {"config": "quickstart.py", "quick": False}
    before = [this | row("classes", 1), this | row("devices", 1)]
    before.append({"config": "quickstart.py", "quick": True} | row("image size, px", 1))
    path = tmp_path / "growth.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in before))
    arguments = ["growth.py", "--out", str(tmp_path), "--axis", "classes", "--axis", "devices"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    with script("experiments/speed/growth.py") as growth:

        def stopped(name, options):
            if name == "devices":
                raise KeyboardInterrupt
            return [row(name, 2)]

        monkeypatch.setattr(growth, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            growth.main()
    rows = map(json.loads, path.read_text().splitlines())
    assert {each["axis"]: each["seconds"] for each in rows} == {"devices": 1, "classes": 2}
