"""Programs that this process starts and waits for, on devices that it may be using itself."""

import os
import subprocess
from collections.abc import Mapping, Sequence

# Of the memory of a GPU a JAX process takes three quarters at its first array, and the next one
# nearly all that is left. One that takes what it needs leaves room for the others.
SMALL_MEMORY = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def run_child(
    command: Sequence[str | os.PathLike], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What the command printed and how it ended; `environment` goes beside that of this process.

    Memory of a GPU it takes as it needs it, unless the user has decided otherwise.
    """
    return subprocess.run(
        command,
        env=SMALL_MEMORY | os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
