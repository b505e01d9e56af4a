import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssd_jax.errors import UserError
from ssd_jax.weights.readers import read_safetensors


def test_floats_of_every_width_become_float32_and_integers_stay(tmp_path):
    values = np.array([0.5, -1.25, 3.0])
    floats = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
    tensors = {np.dtype(dtype).name: values.astype(dtype) for dtype in floats}
    save_file({**tensors, "count": np.array([3])}, tmp_path / "w.safetensors", {"input": "RGB"})
    got, metadata = read_safetensors(tmp_path / "w.safetensors")
    assert metadata == {"input": "RGB"}
    assert got.pop("count").dtype == np.int64
    assert got.keys() == tensors.keys()
    for tensor in got.values():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, values)


def test_a_file_without_metadata_has_none(tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "w.safetensors")
    assert read_safetensors(tmp_path / "w.safetensors").metadata == {}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such weight file"):
        read_safetensors(tmp_path / "nowhere.safetensors")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": np.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"w\.safetensors: not a readable safetensors file"):
        read_safetensors(path)
