"""Errors that a user can act on.

A message says what was found and where, what was expected, and what to do.
"""

import pathlib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake in a command, a config or a file; the command line shows it without traceback."""


class DataError(UserError):
    """A record of a data set that cannot be used, under a code that stays the same for ever."""

    def __init__(self, code: str, where: str, problem: str, fix: str):
        super().__init__(f"{code} {where}: {problem}. {fix}")
        self.code = code
        self.where = where
        self.problem = problem
        self.fix = fix


class AnotherRun(UserError):
    """The run in a folder is not the one that is asked for.

    `settings` are the names of those that differ; none where it is the data.
    """

    def __init__(self, problem: str, fix: str, settings: Iterable[str] = ()):
        super().__init__(f"{problem}. {fix}")
        self.problem = problem
        self.settings = tuple(settings)


class Stopped(Exception):
    """A run was asked to stop; what it had done is saved, and the same command goes on."""


def first_line(error: Exception) -> str:
    """What an error of others says, for a message; its kind, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def some_of(names: Sequence[str], limit: int = 12) -> str:
    """A few names for a message, shortest first: `train` stands before VOC's `aeroplane_train`."""
    shown = sorted(names, key=lambda name: (len(name), name))[:limit]
    return (", ".join(shown) or "nothing") + (", ..." if len(names) > limit else "")


def what_is_there(path: pathlib.Path) -> str:
    """For a path that does not exist: what its nearest parent holds."""
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{parent} holds {some_of([path.name for path in parent.iterdir()])}"
