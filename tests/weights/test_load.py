import shlex
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssd_jax.config import default_config, override, split_assignments
from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables
from ssd_jax.models.ssd import build_model
from ssd_jax.weights.load import HEADS, load_weights
from ssd_jax.weights.maps import CAFFE_INPUT, TORCHVISION_INPUT, Input, NameMap, Target, unchanged
from ssd_jax.weights.maps_vgg import VGG16_CAFFE_NAMES, VGG16_TORCHVISION
from ssd_jax.weights.readers import WeightFile


def network(**keywords):
    model = build_model(
        backbone="vgg16",
        num_classes=2,
        image_size=64,
        anchors_per_cell=(4,) * 4,
        **{"width": 1 / 16, **keywords},
    )
    return init_variables(model, 64, seed=0)


@pytest.fixture(scope="module")
def variables():
    return network()


@pytest.fixture(scope="module")
def tensors(variables):
    """What a Caffe-style file of this network's width holds."""
    rng = np.random.default_rng(0)
    return {
        f"{name}/{leaf}": rng.normal(size=array.shape).astype(np.float32)
        for name, layer in variables["params"]["backbone"].items()
        if name.startswith("conv") and name != "conv4_3_norm"
        for leaf, array in layer.items()
    }


@pytest.fixture
def load(tmp_path, variables):
    def load(tensors, variables=variables, **keywords):
        save_file(tensors, tmp_path / "w.safetensors", {"input": "RGB 0..255 minus a mean"})
        return load_weights(variables, tmp_path / "w.safetensors", **keywords)

    return load


def test_a_caffe_style_file_fills_the_convolutions_and_nothing_else(load, variables, tensors):
    loaded, report = load(tensors)
    backbone = loaded["params"]["backbone"]
    for name, tensor in tensors.items():
        conv, leaf = name.split("/")
        np.testing.assert_array_equal(backbone[conv][leaf], tensor)
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    for name in ("fc6", "fc7", "conv4_3_norm"):
        assert backbone[name] == variables["params"]["backbone"][name]
    assert loaded["params"]["heads"] == variables["params"]["heads"]
    assert len(report.loaded) == 26
    assert len(report.loaded) + len(report.kept) == len(jax.tree.leaves(variables))
    assert "params/extras/conv6_1/kernel" in report.kept
    assert report.is_clean
    assert report.metadata["input"] == "RGB 0..255 minus a mean"
    assert len(report.metadata["sha256"]) == 64


def test_the_report_reads_well(load, tensors):
    text = str(load(tensors)[1])
    assert "vgg16 with Caffe's names" in text
    assert "loaded: 26, params/backbone/conv1_1/bias to params/backbone/conv5_3/kernel" in text
    assert "kept as they were" in text
    assert "input: RGB 0..255 minus a mean" in text


def as_torch(tensors):
    """The same in torchvision's names and order."""
    names = {target.path: name for name, target in VGG16_TORCHVISION.targets.items()}
    return {
        names[VGG16_CAFFE_NAMES.targets[name].path]: np.ascontiguousarray(
            tensor.transpose(3, 2, 0, 1) if tensor.ndim == 4 else tensor
        )
        for name, tensor in tensors.items()
    }


def test_a_torchvision_file_gives_the_same_and_its_last_layer_is_ignored(load, tensors):
    last = {"classifier.6.bias": np.zeros(3, np.float32)}
    loaded, report = load({**as_torch(tensors), **last})
    jax.tree.map(np.testing.assert_array_equal, loaded, load(tensors)[0])
    assert report.ignored == ("classifier.6.bias",)
    assert "std (58.395, 57.12, 57.375)" in str(report)


def test_dense_layers_of_a_file_fill_fc6_and_fc7(load, tensors):
    units, channels = 4 * 64, 32  # at this width
    dense = {
        "classifier.0.weight": np.ones((units, channels * 49), np.float32),
        "classifier.0.bias": np.arange(units, dtype=np.float32),
        "classifier.3.weight": np.eye(units, dtype=np.float32),
        "classifier.3.bias": np.zeros(units, np.float32),
    }
    loaded, report = load({**as_torch(tensors), **dense})
    assert len(report.loaded) == 30
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["fc6"]["bias"], np.arange(0, units, 4)
    )
    np.testing.assert_array_equal(loaded["params"]["backbone"]["fc7"]["kernel"][0, 0], np.eye(64))


def test_convolutions_fit_a_network_with_batch_norm_too(load, tensors):
    _, report = load(tensors, network(batch_norm="batch"))
    assert len(report.loaded) == 26
    assert "batch_stats/backbone/conv1_1_bn/mean" in report.kept


def test_a_truncated_file_is_refused(load, tensors):
    short = {name: tensor for name, tensor in tensors.items() if not name.startswith("conv5_3")}
    with pytest.raises(UserError, match=r"MISSING in the file: 2\n .*conv5_3/bias\n"):
        load(short)


def test_a_misnamed_array_is_refused(load, tensors):
    extra = {**tensors, "conv6_1/kernel": np.zeros(1, np.float32)}
    with pytest.raises(UserError, match=r"UNUSED in the file: 1\n    conv6_1/kernel\n"):
        load(extra)


def test_a_file_for_another_backbone_is_refused(load, tensors):
    model = build_model(
        backbone="resnet50",
        num_classes=2,
        image_size=64,
        anchors_per_cell=(4,) * 3,
        width=1 / 16,
        batch_norm="frozen",
    )
    with pytest.raises(UserError, match=r"UNUSED in the file: 26\n(.*\n)*    and 16 more"):
        load(tensors, init_variables(model, 64, seed=0))


def test_another_width_is_refused_and_the_advice_says_width(load, tensors):
    with pytest.raises(UserError, match=r"MIS-SHAPED: \d+\n(.*\n)*.*fit a model of width 1\.0"):
        load(tensors, network(width=1 / 4))


def test_the_facts_of_a_report_are_counts(small):
    assert load_small(small)[1].facts == {
        "source": "w",
        "layout": "small",
        "expects": "grey pictures",
        "loaded": 3,
        **dict.fromkeys(("kept", "reinitialised", "ignored", "missing", "unused", "misshaped"), 0),
    }


def test_an_array_of_another_rank_is_mis_shaped(load, variables):
    with pytest.raises(UserError, match=r"conv1_1/kernel: \(7,\) in the file, \(3, 3, 3, 8\) in"):
        load({"features.0.weight": np.zeros(7, np.float32)})


@pytest.fixture(scope="module")
def small():
    """Variables of a convolution with BatchNorm, and a head."""
    zeros = np.zeros(2, np.float32)
    return {
        "params": {
            "backbone": {"conv": {"kernel": np.zeros((1, 1, 3, 2), np.float32)}},
            "heads": {"class_0": {"bias": zeros}},
        },
        "batch_stats": {"backbone": {"conv_bn": {"mean": zeros}}},
    }


SMALL = NameMap(
    "small",
    {
        "kernel": Target("params/backbone/conv/kernel", unchanged),
        "head": Target("params/heads/class_0/bias", unchanged),
        "head again": Target("params/heads/class_0/bias", unchanged),
        "mean": Target("batch_stats/backbone/conv_bn/mean", unchanged),
    },
    biases={"bias": "batch_stats/backbone/conv_bn/mean"},
    backbones=("one",),
    expects="grey pictures",
)
FILE = {
    "kernel": np.ones((1, 1, 3, 2), np.float64),
    "head": np.array([5, 6], ml_dtypes.bfloat16),
    "mean": np.array([3, 4], np.float16),
}


def load_small(small, changes=(), **keywords):
    file = WeightFile("w", {**FILE, **dict(changes)}, {})
    return load_weights(small, file, name_map=SMALL, **keywords)


def test_every_float_becomes_our_own_float32(small):
    loaded, report = load_small(small)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"float32"}
    np.testing.assert_array_equal(loaded["params"]["heads"]["class_0"]["bias"], [5, 6])
    assert not np.shares_memory(loaded["params"]["backbone"]["conv"]["kernel"], FILE["kernel"])
    assert report.metadata == {"expects": "grey pictures"}


def test_an_input_of_another_scale_is_told(small):
    of_caffe = SMALL._replace(expects=CAFFE_INPUT)
    file = WeightFile("w", FILE, {})
    for seen, is_told in (
        (CAFFE_INPUT, False),
        (Input((123, 117, 104), (1, 1, 1)), False),
        (TORCHVISION_INPUT, True),
        (Input((0, 0, 0), (1, 1, 1)), True),
    ):
        _, report = load_weights(small, file, name_map=of_caffe, network_sees=seen)
        assert ("ANOTHER INPUT" in str(report)) == is_told
        assert f"expects: {CAFFE_INPUT}" in str(report)


def test_only_shapes_of_the_variables_are_asked_for(small):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), small)
    jax.tree.map(np.testing.assert_array_equal, load_small(shapes)[0], load_small(small)[0])


def test_a_bias_before_batch_norm_goes_into_its_mean(small):
    loaded, report = load_small(small, {"bias": np.array([1, 2], np.float32)})
    np.testing.assert_array_equal(loaded["batch_stats"]["backbone"]["conv_bn"]["mean"], [2, 2])
    assert not report.ignored


@pytest.mark.parametrize("shape", [(3,), (1,), ()])
def test_a_bias_of_another_shape_is_refused(small, shape):
    with pytest.raises(UserError, match=r"UNUSED in the file: 1\n    bias"):
        load_small(small, {"bias": np.zeros(shape, np.float32)})


def test_a_mis_shaped_head_is_made_new_only_when_asked_and_is_told(small):
    other = {"head": np.zeros(7, np.float32)}
    with pytest.raises(UserError, match=r"MIS-SHAPED: 1\n") as error:
        load_small(small, other)
    assert "`ssd-jax weights import --reinit-heads`" in str(error.value)
    # As a shell passes it on.
    (typed,) = (
        word for word in shlex.split(str(error.value).splitlines()[-1]) if "--config" in word
    )
    config = default_config()
    override(config, split_assignments([typed.rstrip(",")]))
    assert config.weights.reinitialise == HEADS
    loaded, report = load_small(small, other, reinitialise=HEADS)
    assert loaded["params"]["heads"] == small["params"]["heads"]
    assert report.reinitialised == (
        "params/heads/class_0/bias: (7,) in the file, (2,) in the model",
    )
    assert "RE-INITIALISED, as requested: 1\n    params/heads/class_0/bias" in str(report)


def test_a_head_that_fits_is_loaded_even_so(small):
    loaded, report = load_small(small, reinitialise=HEADS)
    np.testing.assert_array_equal(loaded["params"]["heads"]["class_0"]["bias"], [5, 6])
    assert not report.reinitialised


def test_only_what_is_asked_for_is_made_new(small):
    with pytest.raises(UserError, match="MIS-SHAPED"):
        load_small(small, {"kernel": np.zeros((1, 1, 3, 9), np.float32)}, reinitialise=HEADS)


@pytest.mark.parametrize(
    "transform",
    [lambda x: x.transpose(2, 3, 1, 0), lambda x: x[:, ::2], lambda x: x.reshape(len(x[0]), 7)],
)
def test_what_a_transform_cannot_take_is_mis_shaped(small, transform):
    targets = {"kernel": Target("params/backbone/conv/kernel", transform)}
    file = WeightFile("w", {"kernel": np.zeros(7, np.float32)}, {})
    with pytest.raises(UserError, match=r"conv/kernel: \(7,\) in the file, \(1, 1, 3, 2\) in"):
        load_weights(small, file, name_map=NameMap("one", targets))


def test_integers_are_no_weights(small):
    with pytest.raises(UserError, match=r"class_0/bias: int64 in the file, float32 in the model"):
        load_small(small, {"head": np.array([5, 6])})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_of_a_diverged_training_are_refused(small, value):
    with pytest.raises(UserError, match="params/heads/class_0/bias has NaN or infinite values"):
        load_small(small, {"head": np.array([1, value], np.float32)})


def test_two_arrays_for_one_place_are_refused(small):
    with pytest.raises(UserError, match=r"UNUSED in the file: 1\n    head again"):
        load_small(small, {"head again": np.zeros(2, np.float32)})


def test_weights_of_another_backbone_with_the_same_parameters_are_refused(small):
    assert load_small(small, backbone="one")[1].is_clean
    with pytest.raises(UserError, match="got weights of small, expected weights for the backbone"):
        load_small(small, backbone="two")


def test_loading_takes_one_copy(small):
    megabytes = 8
    big = {"a": np.ones(megabytes * 2**18, np.float32)}
    file = WeightFile("w", big, {})
    shapes = {"a": jax.ShapeDtypeStruct(big["a"].shape, np.float32)}
    tracemalloc.start()
    load_weights(shapes, file, name_map=NameMap("one", {"a": Target("a", unchanged)}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.1 * megabytes * 2**20
