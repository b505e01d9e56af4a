"""Whether an ONNX model holds all of its tensors itself.

A tensor may say that its values lie in another file (onnx.proto, "external_data"). Runtimes look
for that beside the model or, given bytes, in the working directory: no hash of the artefact covers
it. The package onnx, which could tell, need not be installed where a model is served, so the
messages that may hold tensors are walked here, as protobuf lays them out
(protobuf.dev/programming-guides/encoding); the values of a tensor are stepped over.
"""

from collections.abc import Iterator

from ssd_jax.errors import UserError

# Of each message that may hold tensors, those fields by their numbers in onnx.proto.
CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of TensorProto
_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5
# Far beyond any network; walking so many takes seconds.
_MOST_FIELDS = 2_000_000


def check_all_inside(model: memoryview, where: str) -> None:
    """Raises UserError if a tensor of the model lies in another file, or the bytes are no model."""
    left = _MOST_FIELDS
    waiting = [("ModelProto", 0, len(model))]
    while waiting:
        kind, start, end = waiting.pop()
        for number, begin, stop in _fields(model, start, end, where):
            left -= 1
            if not left:
                raise _damaged(where, f"it has more than {_MOST_FIELDS:,} fields")
            if kind == "TensorProto" and _is_elsewhere(number, model[begin:stop]):
                raise UserError(
                    f"{where}: a tensor of it lies in another file, which nothing vouches for; "
                    "expected all of them inside. Export the run again."
                )
            if number in CHILDREN[kind]:
                waiting.append((CHILDREN[kind][number], begin, stop))


def _is_elsewhere(number: int, value: memoryview) -> bool:
    return number == EXTERNAL_DATA or (number == DATA_LOCATION and any(value))


def _fields(data: memoryview, at: int, end: int, where: str) -> Iterator[tuple[int, int, int]]:
    """The number of each field of a message, and where its value begins and ends."""
    while at < end:
        key, at = _varint(data, at, end, where)
        kind, begin = key & 7, at
        if kind == _VARINT:
            _, stop = _varint(data, at, end, where)
        elif kind == _LENGTH:
            length, begin = _varint(data, at, end, where)
            stop = begin + length
        elif kind in (_FIXED_32, _FIXED_64):
            stop = begin + (4 if kind == _FIXED_32 else 8)
        else:
            raise _damaged(where, f"byte {at:,} follows a field of the unknown type {kind}")
        # Readers drop the bits of a number that are beyond 32, and find another field.
        if key >= 2**32 or stop > end:
            raise _damaged(where, f"byte {at:,} follows a field that cannot be")
        yield key >> 3, begin, stop
        at = stop


def _varint(data: memoryview, at: int, end: int, where: str) -> tuple[int, int]:
    """A number of up to 64 bits, and what lies behind it."""
    value = 0
    for place in range(at, min(end, at + 10)):
        value |= (data[place] & 0x7F) << 7 * (place - at)
        if data[place] < 0x80:
            return value, place + 1
    raise _damaged(where, f"no number ends behind byte {at:,}")


def _damaged(where: str, problem: str) -> UserError:
    return UserError(f"{where}: no ONNX model: {problem}. Fetch it again, or export the run again.")
