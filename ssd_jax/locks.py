"""Locks among the processes of a machine; a lock ends with the process that holds it."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from ssd_jax.errors import UserError

_UNFINISHED = ".unfinished-"


def lock(file: IO | int, *, wait: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False if another process holds it.

    On file systems without locks, such as some network file systems, nothing is locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def held(folder: str | os.PathLike) -> Iterator[None]:
    """Locks a folder.

    Raises:
      BlockingIOError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not lock(handle):
            raise BlockingIOError(f"{folder}: another process holds it")
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def unfinished(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder for unfinished files inside of `folder`, removed at the end."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as scratch, held(scratch):
        yield pathlib.Path(scratch)


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what killed processes left in `folder`, but nothing of one that is running."""
    for scratch in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(BlockingIOError), held(scratch):
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def only_training(folder: str | os.PathLike, workdir: str | os.PathLike) -> Iterator[None]:
    """Keeps a second training from `workdir` by a lock on `folder`.

    Raises:
      UserError: another process is training there.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(folder))
        except BlockingIOError as error:
            raise UserError(
                f"{workdir}: another process is training there. Wait for it to end, or choose "
                "another --workdir."
            ) from error
        yield
