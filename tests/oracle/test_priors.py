"""Anchors against those of MXNet's MultiBoxPrior."""

import ast
import json

import numpy as np
import pytest
from oracle.networks import network_of
from oracle.reference import read_vector, vectors

from ssd_jax.ops.anchors import AnchorLevel, default_boxes

PRIORS = vectors("multibox_prior")


@pytest.mark.parametrize("path", PRIORS)
def test_default_boxes_are_the_operators_in_every_bit(path):
    """Levels made of the operator's own arguments."""
    vector = read_vector(path)
    if "spec" in vector:
        calls = json.loads(str(vector["spec"]))
        shapes = [tuple(call.pop("fmap")) for call in calls]
        (clip,) = {call.pop("clip") == "True" for call in calls}
        got = default_boxes(shapes, [level(**call) for call in calls])
        np.testing.assert_array_equal(clipped(got, clip), vector["anchors"])
    elif "n" in vector:
        for i in range(vector["n"]):
            case = {key: vector[key].tolist() for key in vector if key.startswith(f"c{i}_")}
            words = {key.partition("_")[2]: words for key, words in case.items()}
            expected, shape, clip = (words.pop(key) for key in ("anchors", "hw", "clip"))
            got = default_boxes([tuple(shape)], [level(**words)])
            np.testing.assert_array_equal(clipped(got, clip), np.float32(expected))
    else:
        pytest.skip(f"{path.name} does not say what the operator was called with")


def clipped(anchors, clip):
    """None of our networks cuts its anchors to the image, which the operator can."""
    return anchors.clip(0, 1) if clip else anchors


def level(sizes, ratios, steps, offsets=(0.5, 0.5), name=None):
    """A call of the operator, its arguments numbers or text as in a symbol file; -1 = no step."""
    sizes, ratios, steps, offsets = (
        tuple(ast.literal_eval(str(words))) for words in (sizes, ratios, steps, offsets)
    )
    return AnchorLevel(sizes, ratios, None if min(steps) < 0 else steps, offsets)


@pytest.mark.parametrize("path", PRIORS)
def test_mxnet_levels_are_those_of_its_networks(path):
    """The file name tells the network; SageMaker's sizes of six digits are 2.4e-7 away."""
    network = network_of(path.stem.removeprefix("multibox_prior_"))
    if network is None:
        pytest.skip(f"{path.name} is not named after a network")
    got = default_boxes(network.feature_shapes(), network.levels())
    np.testing.assert_allclose(got, read_vector(path)["anchors"], rtol=0, atol=1e-6)
