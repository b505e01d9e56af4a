"""All processes of a run stop together: when one is asked to, and when one is lost."""

import signal

import pytest
from processes import finish, start_processes, told, training, wait_until
from same_run import steps_on_disk
from topologies import config_of

from ssd_jax.config import save_config

# From the signal to the end of the processes.
IN_TIME = 30


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
