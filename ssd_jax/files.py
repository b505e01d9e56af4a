"""Files that are written completely or not at all, and values for JSON."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from ssd_jax.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path that is renamed to `path` if all goes well; its folder is made.

    Readers see the old file or the new one, never a part, even if several processes write it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no process of any host uses. It keeps only the suffix, from which OpenCV knows the
    # format, because the rest may already be as long as a name can be.
    part = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def make_folder(path: pathlib.Path) -> None:
    """Make the folder of results, before the work whose results it cannot lose then."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: expected a folder to write to, or a place for a new one ({error.strerror}). "
            "Give another folder."
        ) from error
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: this folder cannot be written to. Give another folder.")


def is_apple_double(name: str) -> bool:
    """Whether it is a `._NAME` that macOS adds beside NAME in archives and copies."""
    return name.startswith("._")


def listed(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """The paths that match a glob, sorted, except for macOS's `._NAME` files."""
    return sorted(path for path in folder.glob(pattern) if not is_apple_double(path.name))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, as macOS's `._NAME` and `.ipynb_checkpoints` are."""
    return name.startswith(".")


def files_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files in a folder, its subfolders and the folders linked there, except hidden ones.

    Each folder is searched once: under its own name, or else under its first link. So a link that
    leads back ends no search. Of pathlib's globs, whether `**` follows links depends on Python's
    version.
    """
    seen = set(folder.resolve().parents)
    starts = [folder]
    for start in starts:  # it grows
        for place, folders, names in os.walk(start):
            here = pathlib.Path(place)
            if (real := here.resolve()) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            starts += [here / name for name in folders if (here / name).is_symlink()]
            yield from (here / name for name in sorted(names) if not is_hidden(name))


def file_digest(path: str | os.PathLike, algorithm: str = "sha256") -> str:
    """The digest of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8, completely or not at all (`whole_file`).

    Bytes of a file's name that are not UTF-8 are written as escapes, with a backslash.
    """
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file, completely or not at all (`whole_file`)."""
    write_text(path, _json_text(value, indent=2))


def json_line(value: Any) -> str:
    """A line of a JSON lines file."""
    return _json_text(value)


def to_json(value: Any) -> Any:
    """Plain Python values for JSON: arrays become lists or numbers, NaN and infinities None."""
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _json_text(value: Any, indent: int | None = None) -> str:
    text = json.dumps(to_json(value), allow_nan=False, ensure_ascii=False, indent=indent)
    # Bytes of a file's name that are not UTF-8 become escapes, which JSON's readers undo.
    return f"{text}\n".encode(errors="backslashreplace").decode()
