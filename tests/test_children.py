"""A program that is started beside this one leaves the devices some memory."""

import sys

import pytest

from ssd_jax.children import run_child

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
