"""Errors that a user can act on.

A message says what was found and where, what was expected, and what to do.
"""


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


class Stopped(Exception):
    """A run was asked to stop; what it had done is saved, and the same command goes on."""
