"""The name maps against the listings of the reference's parameters."""

import ast
import functools
import re

import jax
import numpy as np
import pytest
from oracle.networks import mxnet_shape, network_of

from ssd_jax.models.initialise import variable_shapes

LISTINGS = {
    "PARAMS_vgg16.txt": "vgg16_reduced_512",
    "PARAMS_legacy_vgg16_512.txt": "legacy_vgg16_512",
    "PARAMS_resnet50.txt": "resnet50_512",
}


@functools.cache
def variables_of(name):
    """(the network, its paths with the shapes that MXNet has them in)."""
    network = network_of(name)
    leaves = jax.tree_util.tree_leaves_with_path(
        variable_shapes(network.build(20), network.image_size)
    )
    paths = {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    return network, {path: mxnet_shape(path, shape) for path, shape in paths.items()}


@pytest.mark.parametrize("listing", LISTINGS)
def test_names_and_shapes_are_those_listed(listing, shared):
    network, ours = variables_of(LISTINGS[listing])
    text = (shared / "reference" / listing).read_text()
    rows = re.findall(r"^((?:arg|aux):\S+)\s+(\([^)]*\))", text, re.MULTILINE)
    listed = {name: ast.literal_eval(shape) for name, shape in rows}
    fixed = {name: listed.pop(name) for name in ("arg:bn_data_gamma",) if name in listed}
    assert {name: ours[t.path] for name, t in network.name_map.targets.items()} == listed
    assert set(fixed) <= set(network.name_map.not_for_us)


@pytest.mark.parametrize("name", LISTINGS.values())
def test_every_path_has_one_name_and_its_transform_gives_our_shape(name):
    network, ours = variables_of(name)
    targets = network.name_map.targets.values()
    assert sorted(target.path for target in targets) == sorted(ours)
    for target in targets:
        array = target.transform(np.empty(ours[target.path], np.float32))
        assert mxnet_shape(target.path, array.shape) == ours[target.path]
