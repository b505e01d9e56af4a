"""Asked to stop, or killed, a run loses nothing: it ends with the bits of an unbroken one."""

import gc
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import time

import jax
import pytest
from distributed.processes import finish, start_processes, told, training, wait_until
from same_run import assert_same_run, losses, steps_on_disk
from test_training import write_config
from tiny import tiny_config

from ssd_jax.cli import main
from ssd_jax.config import read_config, save_config
from ssd_jax.detector import open_checkpoints
from ssd_jax.errors import Stopped, UserError
from ssd_jax.evaluation import run as evaluation_run
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh
from ssd_jax.train.meter import Meter

# From the signal to the end of the process; SageMaker gives 120 seconds, Slurm 30.
IN_TIME = 30


def train_on_one_device(config, workdir):
    return run_training(config, workdir, mesh=make_mesh(jax.devices()[:1]))


def signal_at_call(monkeypatch, module, name, number):
    """SIGTERM comes while `module.name` is called for the given time, counted from 1."""
    function, calls = getattr(module, name), itertools.count(1)

    def called(*arguments, **words):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **words)

    monkeypatch.setattr(module, name, called)


def test_a_signal_in_training_in_evaluation_and_in_measuring(
    shapes, tiny_run, tmp_path, monkeypatch
):
    """One run, stopped four times; threads and how often it is saved may change meanwhile."""
    # It is evaluated at steps 4 and 6, in 2 batches each, and then measured in 2 more.
    for place, call, changes, step in (
        ((Meter, "add"), 2, {"data__threads": 2}, 3),
        ((evaluation_run, "put_batch"), 1, {"data__threads": 2}, 4),
        ((evaluation_run, "put_batch"), 3, {"checkpoint__every_steps": 5}, 6),
        ((evaluation_run, "put_batch"), 3, {}, 6),
    ):
        assert not (tmp_path / "report.json").exists()
        with monkeypatch.context() as patch:
            signal_at_call(patch, *place, call)
            with pytest.raises(Stopped, match="stopped by SIGTERM"):
                train_on_one_device(tiny_config(shapes, **changes), tmp_path)
        assert steps_on_disk(tmp_path)[-1] == step
    config = tiny_config(shapes)
    train_on_one_device(config, tmp_path)
    assert_same_run(tmp_path, tiny_run, config)


def test_a_run_that_stands_still_ends_early_and_stays_ended(shapes, tmp_path, capsys):
    early = {"early_stopping__enabled": True, "early_stopping__minimum_epochs": 0.0}
    early |= {"early_stopping__patience": 1, "early_stopping__tolerance": 1e9}
    train_on_one_device(tiny_config(shapes, **early, evaluate__every_steps=1), tmp_path)
    ended = json.loads((tmp_path / "report.json").read_text())["step"]
    assert ended < 6
    assert losses(tmp_path)[-1].items() >= {"step": ended, "split": "val"}.items()
    message = f"ended early, at step {ended} of 6: map_voc07 has not improved in 1 evaluations"
    assert message in capsys.readouterr().out


# Orbax waits for the first of the writes that fail, and leaves the others to their event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_message_and_leaves_what_was_there(shapes, tiny_run, tmp_path):
    """A limit on the size of files fails the writes of a checkpoint as a full disk does."""
    config = tiny_config(shapes)
    for name in ("config.json", "metrics.jsonl", "checkpoints/2", "checkpoints/3"):
        copy = shutil.copytree if (tiny_run / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(tiny_run / name, tmp_path / name)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"the checkpoint of step 4 .* MB are free"):
            train_on_one_device(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_on_disk(tmp_path) == [2, 3]
    with open_checkpoints(config, tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
    # What the others raised is told here, not by a thread in the middle of the next test.
    gc.collect()


def quick_config(folder, shapes, **changes):
    """The file of a config whose step is compiled in no time."""
    words = {
        "model__backbone": "small",
        "model__width": 0.1,
        "model__batch_norm": "none",
        "augment__distort__probability": 0.0,
        "augment__expand__probability": 0.0,
    }
    file = folder / "config.json"
    save_config(tiny_config(shapes, **words | changes), file)
    return file


def start(config, workdir):
    return start_processes(training(1, config, workdir), devices=1)


def test_a_process_that_is_told_to_go_while_it_compiles(shapes, tmp_path):
    workdir = tmp_path / "run"
    processes = start(quick_config(tmp_path, shapes), workdir)
    # The reporter begins before the first step is compiled.
    wait_until((workdir / "metrics.jsonl").exists, processes)
    processes[0].send_signal(signal.SIGUSR1)
    (outcome,) = finish(processes, timeout=IN_TIME)
    assert outcome.returncode == 75, told([outcome])
    assert "ssd-jax train: stopped by SIGUSR1 at step" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_the_time_limit_of_the_command_line(shapes, tmp_path, monkeypatch, capsys):
    limits = []

    def train(config, workdir, *, time_limit, **words):
        limits.append(time_limit)
        raise Stopped("stopped by the time limit")

    monkeypatch.setattr("ssd_jax.runs.training.run_training", train)
    command = ["train", "--config", str(write_config(tmp_path, shapes)), "--workdir", "run"]
    for text in ("90", "90s", "1.5m", "3h", "1d"):
        assert main([*command, "--time-limit", text]) == 75
    assert limits == [90.0, 90.0, 90.0, 3 * 3600.0, 24 * 3600.0]
    assert "ssd-jax train: stopped by the time limit" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--time-limit", "soon"])
    assert "'soon' is not a duration such as 90s, 45m or 3h" in capsys.readouterr().err


def a_moment(workdir, chance):
    """By chance: whether it has come, as a function of no arguments; and how long to wait then."""
    metrics = workdir / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    newest = max(steps_on_disk(workdir), default=0)

    def starting():
        return True

    def training():
        return bool(records := told_now()) and records[-1]["step"] > newest

    def saving():
        return told_now() is not None and any(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*"))

    def evaluating():
        last = (told_now() or [{}])[-1]
        return last.get("split") == "train" and last["step"] % 12 == 0

    def told_now():
        """What this start has left of the metrics and added; None before."""
        return (
            losses(workdir) if metrics.exists() and metrics.stat().st_mtime_ns != before else None
        )

    # A start takes seconds, a step or a checkpoint some tens of milliseconds.
    moment = chance.choice([starting, training, saving, evaluating])
    return moment, chance.expovariate(0.3 if moment is starting else 20.0)


@pytest.mark.long
def test_killed_fifty_times_a_run_ends_with_the_same_bits(shapes, tmp_path):
    """Each start finds a whole checkpoint, no older than the last one that was whole."""
    words = {"steps": 120, "checkpoint__keep_latest": 2, "log_every_steps": 3}
    file = quick_config(tmp_path, shapes, **words)
    (outcome,) = finish(start(file, tmp_path / "unbroken"), timeout=600)
    assert outcome.returncode == 0, told([outcome])
    kills, chance = 0, random.Random(0)
    for number in itertools.count():
        workdir = tmp_path / f"run{number}"
        while True:
            whole = max(steps_on_disk(workdir), default=0)
            processes = start(file, workdir)
            if kills < 50:
                has_come, delay = a_moment(workdir, chance)
                while not has_come() and processes[0].poll() is None:
                    time.sleep(0.002)
                time.sleep(delay)
                processes[0].kill()
            (outcome,) = finish(processes, timeout=600)
            if whole:
                resumed = re.search(r"resumed at step (\d+) of", outcome.stdout)
                # It may be killed before it gets there.
                assert resumed is None or int(resumed[1]) == whole, told([outcome])
            if outcome.returncode == 0:
                break
            assert outcome.returncode == -signal.SIGKILL, told([outcome])
            kills += 1
        assert_same_run(workdir, tmp_path / "unbroken", read_config(file))
        if kills >= 50:
            break
