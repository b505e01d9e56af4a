"""Errors that a user can act on.

A message says what was found and where, what was expected, and what to do.
"""

import difflib
import pathlib
from collections.abc import Collection, Iterable, Sequence


class UserError(ValueError):
    """A mistake in a command, a config or a file; the command line shows no traceback for it."""


class DataError(UserError):
    """A record of a data set that cannot be used, with a code that never changes."""

    def __init__(self, code: str, where: str, problem: str, fix: str):
        super().__init__(f"{code} {where}: {problem}. {fix}")
        self.code = code
        self.where = where
        self.problem = problem
        self.fix = fix


class AnotherRun(UserError):
    """The run in a folder is not the requested one.

    `settings` are the names of the settings that differ; empty if it is the data that differ.
    """

    def __init__(self, problem: str, fix: str, settings: Iterable[str] = ()):
        super().__init__(f"{problem}. {fix}")
        self.problem = problem
        self.settings = tuple(settings)


class NotTogether(UserError):
    """The processes of a run did not find each other."""

    def __init__(self, problem: str, fix: str):
        super().__init__(f"{problem}. {fix}")
        self.problem, self.fix = problem, fix


class Stopped(Exception):
    """A run was stopped on request; its state is saved, and the same command resumes it."""


def check_choice(name: str, got: object, choices: Collection) -> None:
    """Raises `UserError` unless `got` is one of the choices; `name` is what was to be chosen."""
    if got not in choices:
        raise UserError(f"{name}: got {got!r}, expected one of {', '.join(map(str, choices))}.")


def nearest(name: str, known: Iterable[str], *, likeness: float = 0.0) -> str:
    """The known name that is spelled most like `name`; "" if none is so alike, from 0 to 1."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)), "")


def counted(count: int, noun: str) -> str:
    """E.g. "1 image" or "2,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_line(error: Exception) -> str:
    """The first line of another library's error, for a message; its type if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def some_of(names: Sequence[str], limit: int = 12) -> str:
    """A few names for a message, shortest first: `train` comes before VOC's `aeroplane_train`."""
    shown = sorted(names, key=lambda name: (len(name), name))[:limit]
    return (", ".join(shown) or "nothing") + (", ..." if len(names) > limit else "")


def what_is_there(path: pathlib.Path) -> str:
    """Advice about a path that does not exist: the content of its nearest parent."""
    parent = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{parent} holds {some_of([path.name for path in parent.iterdir()])}"
