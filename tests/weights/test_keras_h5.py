import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.weights.readers import read_weights

h5py = pytest.importorskip("h5py", reason="h5py, of the extra keras, is not installed")

KERNEL = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
MEAN = np.array([1, 2], np.float32)


def write(path, layers, *, root=None):
    """Layers of {name: {weight name: array}}, as Keras 2 lays them out."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        group.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, weights in layers.items():
            own = group.create_group(layer)
            own.attrs["weight_names"] = [name.encode() for name in weights]
            for name, array in weights.items():
                own[name] = array


@pytest.mark.parametrize("root", [None, "model_weights"], ids=["weights only", "whole model"])
@pytest.mark.parametrize(
    "layers",
    [
        {"conv": {"conv/kernel:0": KERNEL}, "relu": {}, "bn": {"bn/moving_variance:0": MEAN}},
        {"conv": {"conv_W_1:0": KERNEL}, "bn": {"bn_running_std_1:0": MEAN}},
        {"vgg16": {"conv/kernel:0": KERNEL, "bn/moving_variance:0": MEAN}},
        {"vgg16": {"vgg16/conv/kernel": KERNEL, "vgg16/bn/moving_variance": MEAN}},
    ],
    ids=["keras 2", "keras 1", "model as a layer", "keras 3"],
)
def test_both_layouts_and_all_names_give_the_same(tmp_path, layers, root):
    write(tmp_path / "w.h5", layers, root=root)
    tensors = read_weights(tmp_path / "w.h5").tensors
    assert tensors.keys() == {"conv/kernel", "bn/moving_variance"}
    np.testing.assert_array_equal(tensors["conv/kernel"], KERNEL)
    np.testing.assert_array_equal(tensors["bn/moving_variance"], MEAN)


def test_two_arrays_of_one_name_are_refused(tmp_path):
    write(tmp_path / "w.h5", {"a": {"x/c/kernel:0": KERNEL}, "b": {"y/c/kernel:0": KERNEL}})
    with pytest.raises(UserError, match=r"two arrays are called c/kernel"):
        read_weights(tmp_path / "w.h5")


def test_an_array_that_takes_more_memory_than_any_weight_is_refused(tmp_path):
    write(tmp_path / "w.h5", {"conv": {"conv/kernel:0": KERNEL}})
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file["conv/conv/kernel:0"]
        # It takes no room on the disk.
        file["conv"].create_dataset("conv/kernel:0", (2**40,), np.float32, chunks=(1024,))
    with pytest.raises(UserError, match="conv/kernel takes 4,398,046,511,104 bytes"):
        read_weights(tmp_path / "w.h5")


def test_a_file_that_keras_has_not_named_is_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/conv2d/vars/0"] = KERNEL
    with pytest.raises(UserError, match="without Keras' layer_names"):
        read_weights(tmp_path / "w.h5")


def test_a_damaged_file_is_refused(tmp_path):
    write(tmp_path / "w.h5", {"conv": {"conv/kernel:0": np.zeros(5000, np.float32)}})
    whole = (tmp_path / "w.h5").read_bytes()
    for length in (8, 100, len(whole) // 2):
        (tmp_path / "w.h5").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"w\.h5: damaged Keras HDF5 file"):
            read_weights(tmp_path / "w.h5")


@pytest.mark.parametrize("kind", ["array", "layer", "raw", "virtual"])
def test_arrays_of_other_files_are_not_read(tmp_path, kind):
    other, weight = tmp_path / "other.h5", "conv/kernel:0"
    write(other, {"conv": {weight: KERNEL}})
    write(tmp_path / "w.h5", {"conv": {weight: KERNEL}})
    with h5py.File(tmp_path / "w.h5", "a") as file:
        layer = file["conv"]
        del layer[weight]
        if kind == "array":
            layer[weight] = h5py.ExternalLink(other, f"conv/{weight}")
        elif kind == "layer":
            del file["conv"]
            file["conv"] = h5py.ExternalLink(other, "conv")
        elif kind == "raw":
            layer.create_dataset(weight, (1, 1, 2, 2), "f4", external=[(other, 0, 16)])
        else:
            virtual = h5py.VirtualLayout((1, 1, 2, 2), "f4")
            virtual[...] = h5py.VirtualSource(other, f"conv/{weight}", (1, 1, 2, 2))
            layer.create_virtual_dataset(weight, virtual)
    with pytest.raises(UserError, match="conv/kernel is a link to another file"):
        read_weights(tmp_path / "w.h5")


def test_a_missing_weight_is_refused(tmp_path):
    write(tmp_path / "w.h5", {"conv": {"conv/kernel:0": KERNEL}})
    with h5py.File(tmp_path / "w.h5", "a") as file:
        del file["conv/conv/kernel:0"]
    with pytest.raises(UserError, match="damaged Keras HDF5 file"):
        read_weights(tmp_path / "w.h5")
