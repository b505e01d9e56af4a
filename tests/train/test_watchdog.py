"""What takes far too long ends the process, which tells where it stood."""

import signal
import subprocess
import sys
import time

import pytest

from ssd_jax.errors import UserError
from ssd_jax.train.watchdog import EXIT_STALLED, Watchdog

# A process of its own, for it is ended; {body} goes through the phases of a run.
PROGRAM = """
import pathlib, sys, time
from ssd_jax.train.watchdog import Watchdog
words = dict(factor=5.0, minimum_seconds=1.0, first_seconds=60.0)
words["last_words"] = lambda error: print("last words:", error, flush=True)
def stall_in_a_step():
    time.sleep(60)
with Watchdog(pathlib.Path(sys.argv[1]), **words) as watchdog:
    {body}
print("went on")
"""


def run(body, folder):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )


STALLS = "for n in range(6): watchdog.enter('step', n); n < 5 or stall_in_a_step()"


def test_a_stalled_step_ends_the_process_with_its_stacks(tmp_path):
    outcome = run(STALLS, tmp_path)
    assert outcome.returncode == EXIT_STALLED == 70
    assert outcome.stdout.startswith("last words: step: not done after ")
    (file,) = tmp_path.iterdir()
    assert file.name == "stalled_process_0.txt"
    for told in (outcome.stderr, file.read_text()):
        assert "process 0 of 1" in told
        assert "step 5, phase step" in told
        assert "in stall_in_a_step" in told


def test_a_folder_that_cannot_be_written_does_not_keep_it(tmp_path):
    outcome = run(STALLS, tmp_path / "missing")
    assert outcome.returncode == EXIT_STALLED
    assert "in stall_in_a_step" in outcome.stderr


def test_what_may_take_long(tmp_path):
    """What comes before the first phase, the first of each name, and what comes after the run."""
    outcome = run("time.sleep(1); watchdog.enter('step', 0); time.sleep(1)", tmp_path)
    assert (outcome.returncode, outcome.stdout) == (0, "went on\n")


def test_a_process_that_was_suspended_is_not_stalled(tmp_path):
    body = "[watchdog.enter('step', n) for n in range(6)]; print(flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate("\n", timeout=60)
    assert (process.returncode, output) == (0, "went on\n")


def test_each_phase_has_a_limit_of_its_own(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ssd_jax.train.watchdog.monotonic", lambda: now[0])
    watchdog = Watchdog(tmp_path, factor=10.0, minimum_seconds=30.0, first_seconds=3600.0)
    for step in range(4):
        for phase, seconds in (("step", 5.0), ("saving", 0.1)):
            later = {"step": 50.0, "saving": 30.0}[phase]
            assert watchdog.limit(phase) == (3600.0 if step < 3 else later)
            watchdog.enter(phase, step)
            now[0] += seconds


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("INTERNAL: NCCL: unhandled system error"), 70),  # another one is gone
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1),
        (TypeError("no such argument"), 1),
        (UserError("no such image"), 2),
    ],
)
def test_what_would_fail_again_is_not_worth_another_try(error, code, tmp_path, monkeypatch):
    codes = []
    monkeypatch.setattr("ssd_jax.train.watchdog.leave", codes.append)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    dog = Watchdog(tmp_path, factor=0.0, minimum_seconds=1.0, first_seconds=1.0)
    with dog.no_waiting():
        raise error
    assert codes == [code]
