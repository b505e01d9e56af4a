"""A writer of MXNet's `.params`, for the tests of its reader."""

import struct

import numpy as np

TYPE_FLAGS = {
    "float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6,
    "bool": 7, "int16": 8, "uint16": 9, "uint32": 10, "uint64": 11, "bfloat16": 12,
}  # fmt: skip
MAGICS = {1: 0xF993FAC8, 2: 0xF993FAC9, 3: 0xF993FACA}


def array_bytes(array: np.ndarray, version: int = 2) -> bytes:
    """One dense array, as generation V0, V1, V2 or V3 lays it out, on the device gpu(3)."""
    dims = struct.pack(f"<{array.ndim}{'I' if version == 0 else 'q'}", *array.shape)
    head = b"" if version == 0 else struct.pack("<I", MAGICS[version])
    head += struct.pack("<i", 0) if version >= 2 else b""
    rest = struct.pack("<iii", 2, 3, TYPE_FLAGS[array.dtype.name]) + array.tobytes()
    return head + struct.pack("<i", array.ndim) + dims + rest


def params_bytes(arrays: dict[str, np.ndarray], version: int = 2) -> bytes:
    """What `mx.nd.save` writes of a dictionary."""
    names = [name.encode() for name in arrays]
    return b"".join(
        [
            struct.pack("<QQQ", 0x112, 0, len(arrays)),
            *(array_bytes(array, version) for array in arrays.values()),
            struct.pack("<Q", len(names)),
            *(struct.pack("<Q", len(name)) + name for name in names),
        ]
    )
