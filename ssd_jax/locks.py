"""Locks among the processes of a machine, which end with the process that holds one."""

import fcntl
from typing import IO


def lock(file: IO | int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds it.

    File systems without locks, as some of networks are, lock nothing.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
