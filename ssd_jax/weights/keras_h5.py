"""Keras `.h5` files, of weights only or of a whole model, through the optional `h5py`."""

import numpy as np

from ssd_jax.errors import UserError

LARGEST_ARRAY = 2**31  # bytes; those of VGG16 have 411 MB at most

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# Keras 1's names; keras.applications still downloads files that were written by it.
_OLD_LEAVES = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # despite its name it held the variance
}


def read_keras_arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays named layer/leaf, for example block1_conv1/kernel, bn_conv1/moving_mean.

    Both layouts of Keras' HDF5 format are read, with the weights at the root or under
    `model_weights`, and both generations of names.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path}: reading HDF5 needs h5py, which is not installed. Install it with: "
            "pip install 'ssd-jax[keras]'"
        ) from error
    try:
        with h5py.File(path) as file:
            root = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise UserError(
                    f"{path}: an HDF5 file without Keras' layer_names. Expected a file of "
                    "model.save_weights('x.h5') or model.save('x.h5') of tf.keras 2; a "
                    "Keras 3 file ending in .weights.h5 does not have the names of its layers: "
                    "save the model as .h5 instead."
                )
            tensors = {}
            for layer in map(_text, root.attrs["layer_names"]):
                for weight in map(_text, root[layer].attrs["weight_names"]):
                    name = _own_name(layer, weight)
                    if name in tensors:
                        raise UserError(f"{path}: two arrays are called {name}, expected one.")
                    tensors[name] = _own_array(root[layer][weight], name, path)
            return tensors
    except UserError:
        raise
    # h5py raises all of these on damaged files.
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged Keras HDF5 file ({error}). Fetch or write it again."
        ) from error


def _own_array(dataset, name: str, path: str) -> np.ndarray:
    """The array, unless it is in another file: a file from elsewhere must not choose that."""
    if dataset.file.filename != path or dataset.external or dataset.is_virtual:
        raise UserError(
            f"{path}: {name} is a link to another file, expected the array itself. Write the "
            "file again with model.save_weights('x.h5')."
        )
    if dataset.nbytes > LARGEST_ARRAY:
        raise UserError(
            f"{path}: {name} takes {dataset.nbytes:,} bytes, expected at most {LARGEST_ARRAY:,}."
        )
    return np.asarray(dataset)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _own_name(layer: str, weight: str) -> str:
    """One name for conv/kernel:0, conv_W_1:0 and vgg16/conv/kernel:0 (of a nested model)."""
    *scopes, leaf = weight.split(":")[0].split("/")
    if scopes:
        return f"{scopes[-1]}/{leaf}"
    leaf = leaf.removeprefix(f"{layer}_").removesuffix("_1")
    return f"{layer}/{_OLD_LEAVES.get(leaf, leaf)}"
