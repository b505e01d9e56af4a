import hashlib
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from weights.mxnet_files import params_bytes

from ssd_jax.errors import UserError
from ssd_jax.weights.readers import read_weights

VALUES = np.array([0.5, -1.25, 3.0])


def test_safetensors_are_read_in_their_types_with_their_metadata(tmp_path):
    path = tmp_path / "w.safetensors"
    dtypes = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int64)
    tensors = {np.dtype(dtype).name: VALUES.astype(dtype) for dtype in dtypes}
    save_file(tensors, path, {"input": "RGB"})
    source, got, metadata = read_weights(path)
    assert source == str(path)
    assert metadata == {
        "input": "RGB",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert got.keys() == tensors.keys()
    for name, tensor in got.items():
        assert tensor.dtype == tensors[name].dtype
        np.testing.assert_array_equal(tensor, tensors[name])


def test_a_type_that_numpy_lacks_is_told(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"half": VALUES.astype(np.float16), "eighth": VALUES.astype(np.int8)}, path)
    path.write_bytes(path.read_bytes().replace(b'"I8"', b'"F8_E4M3"', 1))
    header = int.from_bytes(path.read_bytes()[:8], "little") + len("F8_E4M3") - len("I8")
    path.write_bytes(header.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(UserError, match=r"w\.safetensors: .*float8_e4m3fn.* Convert it"):
        read_weights(path)


def test_mxnet_params_stay_in_the_file_whatever_its_ending(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(params_bytes({"arg:a": np.full(10**6, 0.5, np.float32)}))
    tracemalloc.start()
    tensors = read_weights(path).tensors
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tensors["arg:a"].sum() == 0.5 * 10**6
    assert peak < 10**6
    with pytest.raises(ValueError, match="read-only"):
        tensors["arg:a"][0] = 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such weight file"):
        read_weights(tmp_path / "nowhere.safetensors")


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no such weight file"):
        read_weights(tmp_path / "pipe")


def test_an_archive_is_told_where_it_belongs(tmp_path):
    (tmp_path / "model.tar.gz").write_bytes(b"\x1f\x8b" + bytes(20))
    with pytest.raises(UserError, match=r"ssd-jax weights import .*model\.tar\.gz"):
        read_weights(tmp_path / "model.tar.gz")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100), b"\xff" * 100])
def test_a_file_of_no_known_format_is_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError, match="not a readable weight file"):
        read_weights(tmp_path / "w")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": np.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"w\.safetensors: not a readable weight file"):
        read_weights(path)
