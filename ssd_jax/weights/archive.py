"""Files from an untrusted tar archive: the `model.tar.gz` of a SageMaker job."""

import gzip
import mmap
import os
import tempfile
import zlib
from collections import UserDict

from ssd_jax.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 512
_LARGEST = 2**31  # bytes, unpacked; SageMaker's detectors have a sixteenth of it
_MOST_MEMBERS = 1000
_CHUNK = 2**20


class Members(UserDict[str, memoryview]):
    """Files by their base name; one that several have is refused once it is asked for.

    Those who serve a detector add their own files to its archive, such as several __init__.py.
    """

    def __init__(self, path: str):
        super().__init__()
        self._path = path
        self._repeated: set[str] = set()

    def __setitem__(self, name: str, content: memoryview) -> None:
        if name in self.data:
            self._repeated.add(name)
        self.data[name] = content

    def __getitem__(self, name: str) -> memoryview:
        if name in self._repeated:
            raise _damaged(self._path, f"two members are called {name}")
        return self.data[name]


def is_archive(path: str | os.PathLike) -> bool:
    """Whether the file begins like a tar archive, compressed with gzip or not."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        head = file.read(_BLOCK)
    return head.startswith(GZIP_MAGIC) or _is_header(head)


def read_archive(path: str | os.PathLike) -> Members:
    """The regular files of the archive by their base name, mapped into memory.

    Nothing is written under a name from the archive; gzip is unpacked into an unnamed temporary
    file. Raises UserError for damaged and very large archives.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not packed:
            return _members(_mapped(file), path)
        with tempfile.TemporaryFile() as unpacked:
            _unpack(file, unpacked, path)
            return _members(_mapped(unpacked), path)


def _mapped(file) -> memoryview:
    file.flush()
    if not os.fstat(file.fileno()).st_size:  # mmap refuses empty files
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _unpack(file, unpacked, path: str) -> None:
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while chunk := stream.read(_CHUNK):
                if unpacked.tell() + len(chunk) > _LARGEST:
                    raise UserError(
                        f"{path}: unpacks to more than {_LARGEST >> 30} GiB, expected a detector "
                        "of some hundred MB. Give the model.tar.gz of a training job."
                    )
                unpacked.write(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"gzip reports: {error}") from error


# Not `tarfile`: it reads extended headers into memory whatever size they claim, and follows
# endless chains of them.
def _members(archive: memoryview, path: str) -> Members:
    found, at, seen = Members(path), 0, 0
    while at + _BLOCK <= len(archive):
        header = bytes(archive[at : at + _BLOCK])
        if not any(header):
            return found
        if not _is_header(header):
            raise _damaged(path, f"no tar header at byte {at}")
        seen += 1
        size, start = _number(header[124:136]), at + _BLOCK
        if size is None or start + size > len(archive) or seen > _MOST_MEMBERS:
            raise _damaged(path, f"member {seen} is truncated, or there are too many")
        name = os.path.basename(header[:100].split(b"\0")[0].decode(errors="replace"))
        if header[156:157] in (b"0", b"\0"):  # a regular file
            found[name] = archive[start : start + size]
        at = start + -(-size // _BLOCK) * _BLOCK
    raise _damaged(path, "the closing block is missing")


def _is_header(block: bytes) -> bool:
    """Whether the checksum of a block is right (its own field is summed as blanks)."""
    if len(block) < _BLOCK or not any(block):
        return False
    return _number(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int | None:
    """An octal number; None for anything else, such as GNU's sizes from 8 GiB on."""
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _damaged(path: str, problem: str) -> UserError:
    return UserError(
        f"{path}: damaged archive: {problem}. Expected an intact model.tar.gz; fetch it again."
    )
