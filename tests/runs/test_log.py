import io
import json
import re
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import largest_file

from ssd_jax.errors import UserError
from ssd_jax.runs.log import DIVERGED, Reporter, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def steps_of(workdir):
    return [record["step"] for record in read_metrics(workdir / "metrics.jsonl")]


def run(workdir, steps, *, start_step=0):
    with Reporter(workdir, total_steps=10, start_step=start_step) as report:
        for step in steps:
            report.write(step, "train", {"loss": 1 / (step + 1)})


# ---- metrics.jsonl ----


@pytest.fixture
def at_noon(monkeypatch):
    """The clock stands still."""
    clock = types.SimpleNamespace(monotonic=lambda: 0.0, time=lambda: 43200.12345)
    monkeypatch.setattr("ssd_jax.runs.log.time", clock)


def test_one_flat_json_object_a_line(tmp_path, at_noon):
    told = []
    with Reporter(
        tmp_path / "new" / "folder",
        total_steps=20,
        steps_per_epoch=2.5,
        observers=[lambda *what: told.append(what)],
    ) as report:
        report.write(10, "train", {"loss": np.float32(0.5), "lr": jnp.float32(0.25)})
        report.write(20, "val", {"map11": 0.9, "ap/dog": None})
    lines = (tmp_path / "new" / "folder" / "metrics.jsonl").read_text().splitlines()
    first, second = {"time": 43200.123, "epoch": 4.0}, {"time": 43200.123, "epoch": 8.0}
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "split": "train", **first, "loss": 0.5, "lr": 0.25},
        {"step": 20, "split": "val", **second, "map11": 0.9, "ap/dog": None},
    ]
    assert told[1] == (20, "val", {**second, "map11": 0.9, "ap/dog": None})
    assert read_metrics(tmp_path / "new" / "folder" / "metrics.jsonl")[1]["ap/dog"] is None


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
    with Reporter(tmp_path, total_steps=2) as report:
        report.write(1, "train", {"loss": 1.0})
        assert steps_of(tmp_path) == [1]


def test_numbers_that_are_not_finite_become_null(tmp_path, at_noon):
    with Reporter(tmp_path, total_steps=2) as report:
        report.write(1, "train", {"loss": float("nan"), "lr": np.float32("inf")})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "split": "train",
        "time": 43200.123,
        "loss": None,
        "lr": None,
    }


def test_a_resumed_run_reads_as_one_unbroken_run(tmp_path):
    run(tmp_path, [2, 4, 6, 8])
    run(tmp_path, [6, 8, 10], start_step=4)
    assert steps_of(tmp_path) == [2, 4, 6, 8, 10]


def test_what_told_of_a_divergence_is_taken_back_by_a_run_that_goes_on(tmp_path, capsys):
    run(tmp_path, [2, 4])
    with Reporter(tmp_path, total_steps=10, start_step=4) as report:
        report.write(5, DIVERGED, {"loss": float("inf")})
    assert "diverged" not in capsys.readouterr().err
    run(tmp_path, [6], start_step=5)
    assert steps_of(tmp_path) == [2, 4, 6]


def test_a_run_from_step_zero_starts_afresh(tmp_path):
    run(tmp_path, [0, 2])
    run(tmp_path, [0, 1])
    assert steps_of(tmp_path) == [0, 1]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    run(tmp_path, [2, 4])
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "spl')
    with (tmp_path / "metrics.jsonl").open("ab") as lines:
        lines.write("ü".encode()[:1])  # in the middle of a letter
    assert steps_of(tmp_path) == [2, 4]
    run(tmp_path, [5], start_step=4)
    assert steps_of(tmp_path) == [2, 4, 5]


def test_a_broken_line_is_told_with_its_place(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train"}\nhello\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: got 'hello'; expected one JSON object"):
        read_metrics(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"nothing.jsonl: no such file"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_other_processes_write_nothing(tmp_path, capsys):
    with Reporter(tmp_path / "none", total_steps=2, active=False) as report:
        report.advance(1)
        report.write(1, "train", {"loss": 1.0})
    assert not (tmp_path / "none").exists()
    assert capsys.readouterr() == ("", "")


# ---- TensorBoard ----


def scalars(workdir):
    """(tag, step, value) of all event files, and the steps from which on older ones are hidden."""
    from tensorboardX.proto.event_pb2 import Event

    found, purged = [], []
    for path in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.suffix):
        data = path.read_bytes()
        while data:  # records of length (8 bytes), its checksum (4), event, its checksum (4)
            length = int.from_bytes(data[:8], "little")
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            found += [(each.tag, event.step, each.simple_value) for each in event.summary.value]
            purged += [event.step] if event.HasField("session_log") else []
    return found, purged


def test_tensorboard_gets_every_finite_number(tmp_path):
    with Reporter(tmp_path, total_steps=2) as report:
        report.write(1, "train", {"loss": 0.5, "lr": float("nan"), "images": 16})
        report.write(2, "val", {"ap/dog": 0.75, "ap/cat": None})
    assert scalars(tmp_path)[0] == [
        ("train/loss", 1, 0.5),
        ("train/images", 1, 16.0),
        ("val/ap/dog", 2, 0.75),
    ]


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path):
    run(tmp_path, [2, 4, 6])
    run(tmp_path, [6], start_step=4)
    found, purged = scalars(tmp_path)
    assert [step for _, step, _ in found] == [2, 4, 6, 6]
    assert purged == [0, 5]


def test_a_full_disk_is_told_and_blocks_nothing(tmp_path):
    values = {f"loss{number}": 1.0 for number in range(400)}
    with Reporter(tmp_path, total_steps=9) as report:
        # The events reach the limit, the lines do not.
        with largest_file(10_000), pytest.raises(OSError, match="File too large"):
            report.write(1, "train", values)
        report.write(2, "train", values)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


# ---- progress ----

VALUES = {"loss": 2.3456, "lr": 0.004, "images_per_second": 108.4, "data_wait": 0.034}
SHOWN = "loss 2.35  lr 0.004  108 images/s  data wait 3%"


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    with Reporter(tmp_path, total_steps=600, start_step=200) as report:
        report.advance(201)
        report.write(300, "train", VALUES)
        report.write(300, "val", {"map11": 0.95123, "map": None, "ap/dog": 0.9})
    text = terminal.getvalue()
    assert "step 200/600 |" in text
    assert re.search(r"step 300/600 \|.*\| ETA \d+:\d\d  " + re.escape(SHOWN), text)
    assert "step 300  val  map11 0.951  map None\n" in text


def test_a_log_file_gets_a_line_now_and_then(tmp_path, capsys):
    with Reporter(tmp_path, total_steps=1000, line_seconds=3600.0) as report:
        for step in range(1, 1001):
            report.advance(step)
            report.write(step, "train", VALUES)
        report.write(1000, "val", {"map11": 0.9})
    first, last, evaluation = capsys.readouterr().err.splitlines()
    assert first == f"step 1/1000  {SHOWN}"
    assert last == f"step 1000/1000  {SHOWN}"
    assert evaluation == "step 1000  val  map11 0.9"


def test_a_log_file_says_when_the_run_will_end(tmp_path, capsys, monkeypatch):
    now = iter([0.0, 60.0, 100.0, 105.0, 120.0])
    clock = types.SimpleNamespace(monotonic=lambda: next(now), time=lambda: 0.0)
    monkeypatch.setattr("ssd_jax.runs.log.time", clock)
    with Reporter(tmp_path, total_steps=5000) as report:
        for step in (10, 20, 21, 30):
            report.write(step, "train", {"loss": 1.0})
    assert capsys.readouterr().err.splitlines() == [
        "step 10/5000  loss 1",
        "step 20/5000  loss 1  ETA 5:32:00",
        "step 30/5000  loss 1  ETA 2:45:40",
    ]


def test_import_stays_light():
    heavy = "{'tensorboardX', 'tqdm', 'jax', 'numpy'}"
    code = f"import sys, ssd_jax.runs.log; print({heavy} & set(sys.modules) or 'none')"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "none"
