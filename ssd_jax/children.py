"""Programs that this process starts and waits for, on devices that it may be using itself."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

# Of the memory of a GPU a JAX process takes three quarters at its first array, and the next one
# nearly all that is left. One that takes what it needs leaves room for the others.
SMALL_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def run_child(
    command: Sequence[str | os.PathLike],
    environment: Mapping[str, str] | None = None,
    *,
    in_group: bool = False,
) -> subprocess.CompletedProcess[str]:
    """What the command printed and how it ended; `environment` goes beside that of this process.

    Memory of a GPU it takes as it needs it, unless the user has decided otherwise. Where the wait
    is interrupted, the child is ended; with `in_group`, also all that it has started itself.
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
