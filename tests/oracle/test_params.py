"""`.params` files that MXNet itself wrote, against the arrays that it had."""

import collections

import numpy as np
import pytest
from oracle.reference import vectors

from ssd_jax.weights.readers import read_weights


def expected_arrays(path):
    """The dictionaries and lists of the folder's params_expected.npz, by their letter.

    Keys are GROUP|name for a dictionary, GROUP0, GROUP1, ... for a list, order_GROUP for the order
    of names in the file.
    """
    groups, orders = collections.defaultdict(dict), {}
    with np.load(path.parent / "params_expected.npz") as stored:
        for key, array in stored.items():
            if key.startswith("order_"):
                orders[key.removeprefix("order_")] = array.tolist()
            elif "|" in key:
                group, name = key.split("|", 1)
                groups[group][name] = array
            else:
                group = key.rstrip("0123456789")
                groups[group][key.removeprefix(group)] = array
    return groups, orders


@pytest.mark.parametrize("path", vectors("params", suffix=".params"))
def test_arrays_are_exact(path):
    groups, orders = expected_arrays(path)
    got = read_weights(path).tensors
    (group,) = (group for group, arrays in groups.items() if arrays.keys() == got.keys())
    for name, array in groups[group].items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
    if group in orders:
        assert list(got) == orders[group]
