"""MXNet's `.params` files in NumPy: the lists of named arrays that `mx.nd.save` writes.

The format is that of MXNet's src/ndarray/ndarray.cc: a list header, the arrays, the names. The
generations of arrays, V0 (up to MXNet 0.10), V1, V2 and V3, differ in their first word.
"""

import math
import struct

import ml_dtypes
import numpy as np

from ssd_jax.errors import UserError

LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0
# mshadow's type flags, in order.
_DTYPES = tuple(
    np.dtype(kind)
    for kind in (
        "<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?", "<i2", "<u2", "<u4", "<u8",
        ml_dtypes.bfloat16,
    )
)  # fmt: skip
# Far above any network; they keep a malicious file from using more memory than its size.
_MOST_ARRAYS = 100_000
_MOST_DIMENSIONS = 32


def parse_mxnet_params(buffer: memoryview, where: str) -> dict[str, np.ndarray]:
    """The arrays by name, as views into `buffer`; an unnamed list is named "0", "1", ...

    `where` is used in the UserError that damaged and sparse files raise. An array that MXNet calls
    "none" is empty, float32.
    """
    return _Parser(buffer, where).parse()


class _Parser:
    """A position in the buffer. Every size is checked against the bytes left before it is used."""

    def __init__(self, buffer: memoryview, where: str):
        self._buffer = buffer
        self._where = where
        self._at = 0

    def parse(self) -> dict[str, np.ndarray]:
        if self._left() < 8 or self._take("Q") != LIST_MAGIC:
            raise UserError(
                f"{self._where}: not an MXNet .params file: it does not begin with the magic "
                f"number {LIST_MAGIC:#x}. Give a file that mx.nd.save or save_checkpoint wrote."
            )
        self._take("Q")  # reserved
        arrays = [self._array() for _ in range(self._count("arrays"))]
        names = [self._name() for _ in range(self._count("names"))]
        names = names or [str(index) for index in range(len(arrays))]
        if len(names) != len(arrays):
            raise self._damaged(f"{len(arrays)} arrays but {len(names)} names")
        if self._left():
            raise self._damaged(f"{self._left()} bytes are left over after the last name")
        found = dict(zip(names, arrays, strict=True))
        if len(found) != len(arrays):
            raise self._damaged("two arrays have the same name")
        return found

    def _array(self) -> np.ndarray:
        word = self._take("I")
        if word in (_V2, _V3):
            storage = self._take("i")
            if storage != _DENSE:
                raise UserError(
                    f"{self._where}: array at byte {self._at - 8} is sparse (storage type "
                    f"{storage}), expected dense arrays. Save it with tostype('default')."
                )
            shape = self._shape(self._take("i"), "q")
            is_none = shape is None if word == _V3 else not shape
        elif word == _V1:
            shape = self._shape(self._take("I"), "q")
            is_none = not shape
        else:
            shape = self._shape(word, "I")
            is_none = not shape
        if is_none:
            return np.zeros(0, np.float32)
        self._take("ii")  # the device that it was on
        flag = self._take("i")
        if not 0 <= flag < len(_DTYPES):
            raise self._damaged(f"unknown type flag {flag}")
        dtype = _DTYPES[flag]
        start = self._skip(math.prod(shape) * dtype.itemsize)
        try:
            return np.ndarray(shape, dtype, self._buffer, start)
        except ValueError:  # no element, but sizes whose product is too large for NumPy
            raise self._damaged(f"an array of shape {shape}") from None

    def _shape(self, dimensions: int, kind: str) -> tuple[int, ...] | None:
        if dimensions == -1:  # V3's unknown shape
            return None
        if not 0 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"an array of {dimensions} dimensions")
        sizes = self._unpack(f"{dimensions}{kind}")
        if any(not 0 <= size <= len(self._buffer) for size in sizes):
            raise self._damaged(f"an array of shape {sizes}")
        return sizes

    def _name(self) -> str:
        length = self._take("Q")
        start = self._skip(length)
        try:
            return bytes(self._buffer[start : start + length]).decode()
        except UnicodeDecodeError:
            raise self._damaged("a name that is not UTF-8") from None

    def _count(self, what: str) -> int:
        count = self._take("Q")
        if count > _MOST_ARRAYS:
            raise self._damaged(f"{count} {what}")
        return count

    def _take(self, kind: str) -> int:
        return self._unpack(kind)[0]

    def _unpack(self, kinds: str) -> tuple[int, ...]:
        layout = f"<{kinds}"
        return struct.unpack_from(layout, self._buffer, self._skip(struct.calcsize(layout)))

    def _skip(self, size: int) -> int:
        """Advance by `size` bytes, which must exist; returns where they begin."""
        if size > self._left():
            raise self._damaged(f"{size} bytes are needed, {self._left()} are left")
        start, self._at = self._at, self._at + size
        return start

    def _left(self) -> int:
        return len(self._buffer) - self._at

    def _damaged(self, problem: str) -> UserError:
        return UserError(
            f"{self._where}: damaged .params file: {problem}, at byte {self._at}. It may be "
            "truncated; fetch or write it again."
        )
