"""Files that are there whole or not at all."""

import contextlib
import pathlib
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write what will be the file `path` if all goes well; its folder is made.

    Readers see the old file or the new one, never a part, also where several write the same one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name that no process of any host has. Of the file's own the suffix stays, by which OpenCV
    # tells what to write, and no more: it may be as long as a name can be.
    part = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
