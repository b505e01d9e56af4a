import os
import random
import struct
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from weights.mxnet_files import MAGICS, TYPE_FLAGS, array_bytes, params_bytes

from ssd_jax.errors import UserError
from ssd_jax.weights.mxnet_params import parse_mxnet_params

SECONDS = float(os.environ.get("SSD_JAX_FUZZ_SECONDS", "0.3"))


def parse(data):
    return parse_mxnet_params(memoryview(data), "w.params")


ARRAYS = {
    "arg:conv_weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "aux:bn moving: mean é": np.array([0.5, -1], np.float64),
    "count": np.array([[7]], np.int32),
}
GOOD = params_bytes(ARRAYS)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_every_generation_is_read(version):
    got = parse(params_bytes(ARRAYS, version))
    assert list(got) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("name", TYPE_FLAGS)
def test_every_type_is_read(name):
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else name
    array = np.array([0, 1, 1, 0]).astype(dtype)
    got = parse(params_bytes({"a": array}))["a"]
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_an_unnamed_list_is_numbered():
    unnamed = params_bytes({"ab": np.ones(2, np.float32)})[: -8 - 2 - 8] + struct.pack("<Q", 0)
    np.testing.assert_array_equal(parse(unnamed)["0"], [1, 1])


def test_none_is_empty_and_a_v3_scalar_is_a_scalar():
    head, end = struct.pack("<QQQ", 0x112, 0, 1), struct.pack("<QQ", 1, 1) + b"a"
    none = struct.pack("<Iii", MAGICS[2], 0, 0)
    assert parse(head + none + end)["a"].shape == (0,)
    unknown = struct.pack("<Iii", MAGICS[3], 0, -1)
    assert parse(head + unknown + end)["a"].shape == (0,)
    assert parse(params_bytes({"a": np.array(3.5)}, 3))["a"] == 3.5


def test_arrays_are_views_not_copies():
    data = params_bytes({"a": np.zeros(10**6, np.float32)})
    tracemalloc.start()
    array = parse(data)["a"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.nbytes == 4 * 10**6
    assert peak < 10**5


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_file_cut_short_is_refused(length):
    with pytest.raises(UserError, match=r"w\.params"):
        parse(GOOD[:length])


def with_array(*words):
    layout, *values = words
    return struct.pack("<QQQ", 0x112, 0, 1) + struct.pack(layout, *values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4" + bytes(40), "not an MXNet .params file"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "arrays"),
        (with_array("<Iii", MAGICS[2], 1, 2), "is sparse .storage type 1.*tostype"),
        (with_array("<Iii", MAGICS[2], 0, 2**30), "an array of 1073741824 dimensions"),
        (with_array("<Iii2q", MAGICS[2], 0, 2, 2**62, 2**62), "an array of shape"),
        (with_array("<Iii2q", MAGICS[2], 0, 2, -1, 4), r"an array of shape \(-1, 4\)"),
        (with_array("<Iii2qiii", MAGICS[2], 0, 2, 9, 9, 1, 0, 0), "324 bytes are needed, 0 are"),
        (with_array("<Iii1qiii", MAGICS[2], 0, 1, 1, 1, 0, 99), "unknown type flag 99"),
        (with_array("<I32IiiI", 32, *[9] * 31, 0, 1, 0, 0) + bytes(99), "an array of shape"),
        (GOOD + b"\0", "1 bytes are left over"),
        (GOOD.replace("é".encode(), b"\xff\xff"), "not UTF-8"),
        (struct.pack("<QQQ", 0x112, 0, 2) + array_bytes(ARRAYS["count"]) * 2
         + struct.pack("<QQ", 1, 1) + b"a", "2 arrays but 1 names"),
        (params_bytes({"aa": ARRAYS["count"], "ab": ARRAYS["count"]}).replace(b"ab", b"aa"),
         "two arrays have the same name"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_hostile_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        parse(data)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_no_changed_file_does_anything_else_than_be_read_or_refused(version):
    """SSD_JAX_FUZZ_SECONDS=150 makes it a run of ten minutes in all."""
    rng, whole = random.Random(version), params_bytes(ARRAYS, version)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at, size = rng.randrange(len(changed)), rng.choice((1, 4, 8))
            word = rng.choice((0, 1, 2, 255, 2**31, 2**63 - 1, 2**64 - 1, *MAGICS.values()))
            changed[at : at + size] = word.to_bytes(8, "little")[:size]
        if rng.random() < 0.2:
            del changed[rng.randrange(len(changed)) :]
        try:
            arrays = parse(bytes(changed))
        except UserError:
            continue
        assert sum(array.nbytes for array in arrays.values()) <= len(changed)
