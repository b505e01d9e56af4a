"""Child processes that this one waits for, on devices that it may be using itself."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

# By default a JAX process takes three quarters of a GPU's memory at its first array, and the next
# process nearly all of the rest. Without preallocation they take only what they need.
SMALL_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def run_child(
    command: Sequence[str | os.PathLike],
    environment: Mapping[str, str] | None = None,
    *,
    in_group: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its output and exit code; `environment` is added to ours.

    It does not preallocate GPU memory, unless the user has decided otherwise. If the wait is
    interrupted, the child is killed; with `in_group`, also all processes that it has started.
    """
    with subprocess.Popen(
        command,
        env=SMALL_MEMORY | os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0 if in_group else None,
    ) as child:
        try:
            out, errors = child.communicate()
        except BaseException:
            child.kill()
            if in_group:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, errors)
