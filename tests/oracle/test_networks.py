"""Whole networks against MXNet's own execution of the reference, tensor by tensor."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracle.networks import network_of, seeded_variables
from oracle.reference import read_vector, seeded_images, vectors

from ssd_jax.ops.anchors import default_boxes
from ssd_jax.ops.detect import multibox_detection

# Of a tensor's standard deviation; MXNet and a float64 computation are 2.6e-5 apart.
TOLERANCE = 2e-4


class Trace:
    """One forward pass: what went into and came out of every module, by its path."""

    def __init__(self, model, variables, images, name_map):
        self.inputs, self.outputs = {}, {}
        self.paths = {
            re.sub("_(weight|beta)$", "", name.removeprefix("arg:")): re.sub(
                "^params/(.*)/.*", r"\1", target.path
            )
            for name, target in name_map.targets.items()
        }
        self.scale = variables["params"]["backbone"].get("conv4_3_norm", {}).get("scale")
        with nn.intercept_methods(self._record):
            self.box_deltas, self.class_logits = model.apply(variables, images, train=False)

    def _record(self, call, arguments, keywords, context):
        result = call(*arguments, **keywords)
        path = "/".join(context.module.path)
        self.inputs[path], self.outputs[path] = arguments[0], result
        return result

    def tensor(self, name):
        """A tensor of the reference by its name there; maps are NHWC."""
        if name in self.paths:
            return self.outputs[self.paths[name]]
        match name:
            case "multibox_loc_pred":
                return self.box_deltas.reshape(len(self.box_deltas), -1)
            case "multibox_cls_pred":
                return self.class_logits.swapaxes(1, 2)
            case "cls_prob":
                return jax.nn.softmax(self.class_logits).swapaxes(1, 2)
            case "broadcast_mul0":
                return self.outputs["backbone/conv4_3_norm"]
            case "relu4_3_norm":
                return self.outputs["backbone/conv4_3_norm"] / self.scale
            case "pool5":
                return self.inputs["backbone/fc6"]
            case "pooling0":
                return self.inputs["backbone/stage1_block1"]
        if found := re.fullmatch(r"pool([1-4])", name):
            return self.inputs[f"backbone/conv{int(found[1]) + 1}_1"]
        if found := re.fullmatch(r"_plus(\d+)", name):
            blocks = [path for path in self.outputs if re.fullmatch(r".*/stage\d_block\d", path)]
            return self.outputs[sorted(blocks)[int(found[1])]]
        for layer in ("bn", "conv", "fc"):
            if "relu" in name and (before := name.replace("relu", layer)) in self.paths:
                return jax.nn.relu(self.outputs[self.paths[before]])
        raise LookupError(f"which tensor of our network is {name!r}?")


@pytest.fixture(scope="module", params=vectors("network"))
def case(request):
    """(the vector, the same tensors of ours): one run of the full network."""
    path = request.param
    name, _, numbers = path.stem.removeprefix("network_").rpartition("_c")
    num_classes, seed = map(int, numbers.split("_s"))
    network, vector = network_of(name), read_vector(path)
    assert network is not None, f"{name}: no such network of the reference is known here"
    names = {key.removesuffix("__val") for key in vector if key.endswith("__val")}
    model = network.build(num_classes)

    @jax.jit
    def forward(variables, images):
        trace = Trace(model, variables, images, network.name_map)
        return {each: trace.tensor(each) for each in names - {"multibox_anchors"}}

    count = vector["cls_prob__shape"][0]
    images = seeded_images(seed, count=count, size=network.image_size)
    tensors = jax.device_get(forward(seeded_variables(model, network, seed), jnp.asarray(images)))
    tensors["multibox_anchors"] = default_boxes(network.feature_shapes(), network.levels())[None]
    return vector, tensors


def test_every_tensor_is_that_of_the_reference(case):
    vector, tensors = case
    assert {"cls_prob", "multibox_loc_pred", "multibox_anchors"} <= tensors.keys()
    errors = {name: error(ours, vector, name) for name, ours in tensors.items()}
    assert not {name: size for name, size in errors.items() if not size < TOLERANCE}


def error(ours, vector, name):
    """The largest difference of the sampled values and of the moments, in standard deviations."""
    ours = (ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours).astype(np.float64)
    np.testing.assert_array_equal(ours.shape, vector[f"{name}__shape"])
    *moments, total = vector[f"{name}__stat"]
    got = [ours.mean(), ours.std(), ours.min(), ours.max(), np.abs(ours).mean()]
    samples = ours.ravel()[vector[f"{name}__idx"]] - vector[f"{name}__val"]
    differences = np.abs([*samples, *np.subtract(got, [*moments, total / ours.size])])
    return differences.max() / moments[1]


def test_detections_are_those_of_the_reference(case):
    """The operator keeps suppressed rows, with class -1, among the best; we leave them out."""
    vector, tensors = case
    (anchors,) = tensors["multibox_anchors"]
    deltas = tensors["multibox_loc_pred"].reshape(-1, len(anchors), 4)
    detect = jax.jit(
        functools.partial(
            multibox_detection, class_per_anchor="best", strict=False, max_detections=400
        )
    )
    for i, probabilities in enumerate(tensors["cls_prob"]):
        got = detect(deltas[i], probabilities.T, anchors)
        top = vector["detection__top"][i]
        top = top[top[:, 0] >= 0]
        assert 0 < len(top) <= vector["detection__kept"][i] == got.valid.sum()
        np.testing.assert_array_equal(got.labels[: len(top)], top[:, 0])
        np.testing.assert_allclose(got.scores[: len(top)], top[:, 1], atol=TOLERANCE)
        np.testing.assert_allclose(got.boxes[: len(top)], top[:, 2:], atol=TOLERANCE)
