"""All processes of a run stop together: when one is asked to, and when one is lost."""

import json
import signal
import time

import pytest
from processes import (
    finish,
    free_port,
    run_processes,
    start_processes,
    told,
    training,
    wait_until,
)
from same_run import steps_on_disk
from topologies import config_of

from ssd_jax.config import save_config

# From the signal to the end of the processes.
IN_TIME = 30
# One of two processes, before there is anything to save; it prints what stopped it where, as JSON.
ASKED = """
import json, os, signal, sys, threading, time
from ssd_jax import cluster
from ssd_jax.errors import Stopped
from ssd_jax.train.stopping import Stopping
coordinator, process = sys.argv[1], int(sys.argv[2])
cluster.start(batch_size=8, coordinator=coordinator, num_processes=2, process_id=process)
outcome = {}

def ask():
    os.kill(os.getpid(), signal.SIGTERM)

def read_slowly(stopping):
    threading.Timer(1.0, ask).start()
    with cluster.together(), stopping.at_once():
        if process == 0:
            time.sleep(60)

def read_here(stopping):
    with cluster.together(), stopping.at_once():
        if process == 1:
            ask()

def between_meetings(stopping):
    cluster.exchange(None)
    if process == 1:
        ask()
    outcome["goes on to the meeting"] = True
    with cluster.together():
        cluster.exchange("in a meeting")

def with_something_to_save(stopping):
    stopping.hold()
    if process == 1:
        ask()
    outcome["met"] = cluster.exchange(process)

for what in (read_slowly, read_here, between_meetings, with_something_to_save):
    began = time.monotonic()
    try:
        with Stopping() as stopping:
            what(stopping)
    except Stopped as stop:
        outcome[what.__name__] = [str(stop), time.monotonic() - began < 20]
outcome["still together"] = cluster.exchange(process)
print(json.dumps(outcome))
"""
# `ssd-jax train` whose first process reads its data for a minute.
SLOW = """
import sys, time
from ssd_jax import cli
from ssd_jax.runs import training
read = training.open_sources
def slowly(*arguments):
    sources = read(*arguments)
    print("reads", flush=True)
    if sys.argv[-1] == "0":
        time.sleep(60)
    return sources
training.open_sources = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


def start_two(folder, shapes, **changes):
    """Two processes that train without end, once a few checkpoints are there; and their folder."""
    file, workdir = folder / "config.json", folder / "run"
    words = {"steps": 10**6, "checkpoint__every_steps": 2, "checkpoint__keep_latest": 2}
    save_config(config_of(shapes, **words | changes), file)
    processes = start_processes(training(2, file, workdir), devices=1)
    wait_until(lambda: steps_on_disk(workdir)[-1:] > [6], processes)
    return processes, workdir


def test_one_signal_stops_two_processes_at_the_same_step(shapes, tmp_path):
    processes, workdir = start_two(tmp_path, shapes)
    processes[1].send_signal(signal.SIGTERM)
    outcomes = finish(processes, timeout=IN_TIME)
    assert [each.returncode for each in outcomes] == [75, 75], told(outcomes)
    last = steps_on_disk(workdir)[-1]
    assert f"stopped by another process at step {last} of 1000000" in outcomes[0].stderr
    assert f"stopped by SIGTERM at step {last} of 1000000" in outcomes[1].stderr


def test_who_is_asked_before_there_is_anything_to_save_tells_the_others():
    coordinator = f"127.0.0.1:{free_port()}"
    done = run_processes([["-c", ASKED, coordinator, i] for i in range(2)], devices=1)
    assert [each.returncode for each in done] == [0, 0], told(done)
    outcomes = [json.loads(each.stdout.splitlines()[-1]) for each in done]
    alone = "stopped by SIGTERM outside of training. The training so far is saved; give the same"
    for process, outcome in enumerate(outcomes):
        by_both, soon = outcome["read_slowly"]
        assert (by_both[: len(alone)], soon) == (alone, True)
        for what in ("read_here", "between_meetings"):
            begin = alone if process == 1 else f"process 1 was {alone}"
            assert outcome[what][0].startswith(begin), outcome
        assert outcome["goes on to the meeting"]
        assert "with_something_to_save" not in outcome
        assert outcome["met"] == outcome["still together"] == [0, 1]


def test_a_signal_to_all_while_one_still_reads_its_data_ends_all(shapes, tmp_path):
    save_config(config_of(shapes), tmp_path / "config.json")
    commands = training(2, tmp_path / "config.json", tmp_path / "run")
    processes = start_processes([["-c", SLOW, *each[2:]] for each in commands], devices=1)
    for process in processes:
        assert "reads\n" in iter(process.stdout.readline, "")
    time.sleep(1.0)  # The second one has read everything, and waits for the first.
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outcomes = finish(processes, timeout=IN_TIME)
    assert [each.returncode for each in outcomes] == [75, 75], told(outcomes)


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "dies", "codes"),
    [
        (signal.SIGKILL, 1, {70}),
        # JAX may be faster, and aborts a process that has lost process 0.
        (signal.SIGKILL, 0, {70, -signal.SIGABRT}),
        # Of a process that only stands still the watchdog knows before JAX, which waits 100 s.
        (signal.SIGSTOP, 1, {70}),
        (signal.SIGSTOP, 0, {70}),
    ],
)
def test_a_process_that_is_lost_ends_the_other(how, dies, codes, shapes, tmp_path):
    impatient = {"watchdog__minimum_seconds": 10.0, "watchdog__factor": 10.0}
    processes, workdir = start_two(tmp_path, shapes, **impatient)
    processes[dies].send_signal(how)
    (outcome,) = finish([processes[1 - dies]], timeout=90)
    processes[dies].kill()
    finish([processes[dies]])
    assert outcome.returncode in codes, told([outcome])
    assert "most recent call first" in outcome.stderr
    if outcome.returncode == 70:
        assert f"process {1 - dies} of 2 on " in outcome.stderr
        assert (workdir / f"stalled_process_{1 - dies}.txt").exists()
