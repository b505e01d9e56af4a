"""A program that is started beside this one leaves the devices some memory."""

import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from ssd_jax.children import run_child
from ssd_jax.errors import Stopped
from ssd_jax.train.stopping import Stopping

PRINTS = "import os; print(os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'], os.environ.get('WORD'))"


@pytest.mark.parametrize(("decided", "expected"), [(None, "false"), ("true", "true")])
def test_a_child_takes_memory_as_it_needs_it_unless_the_user_decides(
    decided, expected, monkeypatch
):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    if decided:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", decided)
    done = run_child([sys.executable, "-c", PRINTS], {"WORD": "more"})
    assert (done.returncode, done.stdout) == (0, f"{expected} more\n")


def runs(process):
    """Whether it does more than to wait for its parent to read how it ended."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_and_its_own_end_where_the_wait_is_interrupted(tmp_path):
    ids = tmp_path / "ids"
    starts = "import os, subprocess, sys, time; child = subprocess.Popen(['sleep', '60']); "
    starts += "open(sys.argv[1], 'w').write(f'{os.getpid()} {child.pid} '); time.sleep(60)"

    def ask():
        while not (ids.exists() and ids.read_text().endswith(" ")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asks = threading.Thread(target=ask)
    asks.start()
    with pytest.raises(Stopped), Stopping():
        run_child([sys.executable, "-c", starts, ids], in_group=True)
    asks.join()
    deadline = time.monotonic() + 30
    while any(map(runs, ids.read_text().split())):  # a signal takes its time
        assert time.monotonic() < deadline
        time.sleep(0.01)
