"""Texts of command lines: values of settings, names, and paths."""

import ast
import os
import shlex
from collections.abc import Sequence

KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a tuple such as (1, 2)",
}


def read_value(text: str, kind: type, *, names: bool = False) -> object:
    """The value of a setting of type `kind`, or of a tuple of names.

    A value of another type is returned as it is, for the caller to refuse.
    """
    if kind is str:
        return text
    if kind is tuple and not text:
        return ()
    if kind is bool:
        text = text.capitalize()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = _split_names(text) if kind is tuple else text
    if isinstance(value, bool) and kind in (int, float):
        return text  # Python counts True as 1
    if kind is tuple and value is not None and not isinstance(value, tuple):
        value = tuple(value) if isinstance(value, list) else (value,)
    if not names or value is None or all(isinstance(name, str) for name in value):
        return value
    # Names may also be numbers: 1,2.
    quoted = any(isinstance(name, str) for name in value)
    return tuple(map(str, value)) if quoted else _split_names(text)


def read_names(text: str) -> tuple[str, ...]:
    """The names in `cat,dog`, or with a comma in one of them: `"traffic light, red","dog"`."""
    value = read_value(text, tuple, names=True)
    return _split_names(text) if value is None else value


def write_names(names: Sequence[str]) -> str:
    """The text that `read_names` reads as these names."""
    plain = ",".join(names)
    return plain if read_names(plain) == tuple(names) else repr(tuple(names))


def _split_names(text: str) -> tuple[str, ...]:
    """The names in `cat, dog`, `[cat,dog]` or `(cat,dog,)`; a shell may have removed the quotes."""
    text = text.strip()
    opening, inner, closing = text[:1], text[1:-1], text[-1:]
    # In "(a) cat, dog (b)" the brackets belong to names.
    if opening + closing in ("()", "[]") and inner.find(opening) <= inner.find(closing):
        text = inner
    names = tuple(name.strip() for name in text.split(","))
    return names if names[-1] else names[:-1]


def shell_path(path: str | os.PathLike) -> str:
    """A path as an argument for a shell, also one that would be taken for an option."""
    text = os.fspath(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def with_home(location: str) -> str:
    """Replace `~` by the home folder, in each path of "A + B"."""
    return " + ".join(map(os.path.expanduser, location.split(" + ")))
