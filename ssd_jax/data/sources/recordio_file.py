"""The byte format of RecordIO files, as dmlc-core's `src/recordio.cc` reads and writes it.

A record has one or more parts. A part is the magic number, a word (flag << 29 | length), the data,
and zeros up to a multiple of four bytes, all little-endian. The magic number never occurs at a
multiple of four inside the data: the writer ends the part there and omits the four bytes, so that a
reader can find the next record from any position. An `.idx` file has a line `key TAB offset` for
each record.
"""

import contextlib
import hashlib
import mmap
import os
import pathlib
import stat
import struct
import weakref
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int, UInt32

from ssd_jax.caches import cache_folder
from ssd_jax.data import codes
from ssd_jax.errors import DataError
from ssd_jax.files import whole_file

MAGIC = 0xCED7230A
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
WHOLE, FIRST, MIDDLE, LAST = range(4)
MAX_PAYLOAD = 2**29 - 1
HEAD_BYTES = 8
_HEAD = struct.Struct("<II")
# After this much damage it is not worth reading on to the end of a file.
MAX_DAMAGED = 1000


def frame(payload: bytes) -> bytes:
    """The bytes of a record with a payload, which must not be longer than `MAX_PAYLOAD`."""
    parts = _split(payload)
    flags = [FIRST, *[MIDDLE] * (len(parts) - 2), LAST] if len(parts) > 1 else [WHOLE]
    return b"".join(
        piece
        for flag, part in zip(flags, parts, strict=True)
        for piece in (_HEAD.pack(MAGIC, flag << 29 | len(part)), part, bytes(-len(part) % 4))
    )


class RecordFile:
    """A file of records opened for reading, from any thread.

    Heads and labels are read through a memory map. Images are read by `pread`: a page fault would
    hold Python's GIL while the disk works, and mapping a file that is then truncated kills the
    process.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.name = str(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise _missing(self.path, f"the file cannot be opened ({error.strerror})") from error
        weakref.finalize(self, os.close, self._descriptor)
        self.status = os.fstat(self._descriptor)
        if not stat.S_ISREG(self.status.st_mode):
            raise _missing(self.path, "it is not a regular file")
        self.size = self.status.st_size
        self._map = b""
        if self.size:
            self._map = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)

    @property
    def words(self) -> UInt32[np.ndarray, "W"]:
        """The file as mapped little-endian words of four bytes, without the last 0 to 3 bytes."""
        return np.frombuffer(self._map, "<u4", self.size // 4)

    def read(self, start: int, length: int) -> bytes:
        """Bytes anywhere in the file."""
        data = os.pread(self._descriptor, length, start)
        if len(data) != length:
            raise _damaged(self.path, start, "the file has been truncated since it was opened")
        return data

    def payload(self, offset: int, limit: int | None = None) -> bytes:
        """The payload of the record at an offset, its parts joined; it must end by `limit`."""
        pieces, length = [], -4
        try:
            for start, size in self._parts(offset, self.size if limit is None else limit):
                length += 4 + size
                if length > MAX_PAYLOAD:
                    raise _Damage(offset, f"the record is longer than {MAX_PAYLOAD:,} bytes")
                pieces.append(self.read(start, size))
        except _Damage as damage:
            raise _damaged(self.path, damage.offset, damage.problem) from None
        return MAGIC_BYTES.join(pieces)

    def find_records(self, problems: Callable[[DataError], None]) -> Int[np.ndarray, "N"]:
        """The offsets of all records, found by going from head to head through the file.

        Damage is reported to `problems`; if that returns, the search continues after it.
        """
        offsets, at, damaged = [], 0, 0
        while at < self.size:
            try:
                for start, length in self._parts(at, self.size):
                    end = start + length + -length % 4
            except _Damage as damage:
                error = _damaged(self.path, damage.offset, damage.problem)
                damaged += 1
                if damaged > MAX_DAMAGED or not offsets:
                    raise error from None
                problems(error)
                at = self._next_head(max(damage.offset, at + 4))
            else:
                offsets.append(at)
                at = end
        return np.array(offsets, np.int64)

    def _parts(self, at: int, limit: int) -> Iterator[tuple[int, int]]:
        """(start, length) of the data of each part of the record at `at`."""
        expected = (WHOLE, FIRST)
        while True:
            if at % 4 or at + HEAD_BYTES > limit:
                raise _Damage(at, "a record begins here, and the file ends before its head does")
            magic, word = _HEAD.unpack_from(self._map, at)
            flag, start, length = word >> 29, at + HEAD_BYTES, word & MAX_PAYLOAD
            if magic != MAGIC or flag not in expected:
                raise _Damage(at, f"bytes {self._map[at:start].hex(' ', 4)} are not a part's head")
            if start + length > limit:
                raise _Damage(at, f"a part of {length:,} bytes is cut off at byte {limit:,}")
            yield start, length
            if flag in (WHOLE, LAST):
                return
            at, expected = start + length + -length % 4, (MIDDLE, LAST)

    def _next_head(self, at: int) -> int:
        """The offset where the next record may begin; the file's size if there is none."""
        while (at := self._map.find(MAGIC_BYTES, at)) >= 0:
            if at % 4 == 0 and at + HEAD_BYTES <= self.size:
                word = _HEAD.unpack_from(self._map, at)[1]
                if word >> 29 in (WHOLE, FIRST):
                    return at
            at += 1
        return self.size


def read_index(path: pathlib.Path, *, record_bytes: int) -> tuple[list[str], Int[np.ndarray, "N"]]:
    """The keys and offsets of a `.idx` file; `record_bytes` is the size of its `.rec` file."""
    try:
        size = path.stat().st_size
        # A line has at most 21 bytes for 64-bit numbers, a record at least 8.
        if size > 64 * (record_bytes // HEAD_BYTES + 1):
            raise _bad_index(path, f"{size:,} bytes for a .rec file of {record_bytes:,} bytes")
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise _bad_index(path, "it is not a text file") from error
    except OSError as error:
        raise _bad_index(path, f"it cannot be read ({error.strerror})") from error
    if record_bytes and not lines:
        raise _bad_index(path, "it is empty")
    keys, offsets = [], np.zeros(len(lines), np.int64)
    for number, line in enumerate(lines):
        key, _, offset = line.partition("\t")
        try:
            offsets[number] = int(offset)
        except (ValueError, OverflowError) as error:
            raise _bad_index(path, f"line {number + 1} is {line[:80]!r}") from error
        keys.append(key)
    return keys, offsets


def cached_offsets(file: RecordFile, problems: Callable[[DataError], None]) -> Int[np.ndarray, "N"]:
    """`file.find_records`, remembered in the user's cache folder until the file changes.

    The folder is `$SSD_JAX_CACHE`, else `$XDG_CACHE_HOME/ssd_jax`, else `~/.cache/ssd_jax`. If it
    cannot be written to, the file is searched each time.
    """
    place = hashlib.sha256(os.fsencode(file.path.resolve())).hexdigest()[:16]
    name = f"{place}-{file.size}-{file.status.st_mtime_ns}.npy"
    path = cache_folder() / "recordio" / name
    with contextlib.suppress(OSError, ValueError, EOFError):
        offsets = np.load(path, allow_pickle=False)
        if offsets.dtype == np.int64 and offsets.ndim == 1:
            return offsets
    damaged = []

    def note(error: DataError) -> None:
        damaged.append(error)
        problems(error)

    offsets = file.find_records(note)
    if not damaged:  # damage must be reported again the next time
        with contextlib.suppress(OSError), whole_file(path) as part:
            np.save(part, offsets)
    return offsets


class _Damage(Exception):
    def __init__(self, offset: int, problem: str):
        super().__init__(problem)
        self.offset = offset
        self.problem = problem


def _split(payload: bytes) -> list[bytes]:
    parts, start, at = [], 0, payload.find(MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            parts.append(payload[start:at])
            start = at + 4
        at = payload.find(MAGIC_BYTES, at + 1)
    return [*parts, payload[start:]]


def _missing(path: pathlib.Path, problem: str) -> DataError:
    return DataError(
        codes.RECORD_FILE_MISSING,
        str(path),
        f"{problem}, expected a RecordIO file",
        "Give the path of a .rec file",
    )


def _damaged(path: pathlib.Path, offset: int, problem: str) -> DataError:
    return DataError(
        codes.RECORD_DAMAGED,
        f"{path}, byte {offset:,}",
        f"{problem}, expected RecordIO",
        "Copy or write the file again",
    )


def _bad_index(path: pathlib.Path, problem: str) -> DataError:
    return DataError(
        codes.RECORD_INDEX_UNREADABLE,
        str(path),
        f"{problem}, expected a key, a tab and a byte offset on each line",
        "Remove it: without it the .rec file is searched",
    )
