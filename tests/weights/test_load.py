import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables
from ssd_jax.models.ssd import build_model
from ssd_jax.weights.load import load_weights
from ssd_jax.weights.maps import VGG16_CAFFE_NAMES, VGG16_TORCHVISION


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
    assert report.metadata == {"input": "RGB 0..255 minus a mean"}


def test_the_report_reads_well(load, tensors):
    text = str(load(tensors)[1])
    assert "vgg16 with Caffe's names" in text
    assert "loaded: 26, params/backbone/conv1_1/bias to params/backbone/conv5_3/kernel" in text
    assert "kept as they were" in text
    assert "input: RGB 0..255 minus a mean" in text


def test_a_torchvision_file_gives_the_same_and_its_classifier_is_ignored(load, tensors):
    torch_names = {t.path: name for name, t in VGG16_TORCHVISION.targets.items()}
    as_torch = {
        torch_names[target.path]: np.ascontiguousarray(
            tensors[name].transpose(3, 2, 0, 1) if tensors[name].ndim == 4 else tensors[name]
        )
        for name, target in VGG16_CAFFE_NAMES.targets.items()
    }
    loaded, report = load({**as_torch, "classifier.6.bias": np.zeros(3, np.float32)})
    jax.tree.map(np.testing.assert_array_equal, loaded, load(tensors)[0])
    assert report.ignored == ("classifier.6.bias",)


def test_convolutions_fit_a_network_with_batch_norm_too(load, tensors):
    _, report = load(tensors, network(batch_norm="batch"))
    assert len(report.loaded) == 26
    assert "batch_stats/backbone/conv1_1_bn/mean" in report.kept


def test_a_truncated_file_is_refused_unless_the_gap_is_named(load, variables, tensors):
    short = {name: tensor for name, tensor in tensors.items() if not name.startswith("conv5_3")}
    with pytest.raises(UserError, match=r"MISSING in the file: 2\n .*conv5_3/bias\n"):
        load(short)
    loaded, report = load(short, allow_missing=("params/backbone/conv5_3/*",))
    assert len(report.loaded) == 24
    assert loaded["params"]["backbone"]["conv5_3"] == variables["params"]["backbone"]["conv5_3"]


def test_a_misnamed_array_is_refused_unless_it_is_named(load, tensors):
    extra = {**tensors, "conv6_1/kernel": np.zeros(1, np.float32)}
    with pytest.raises(UserError, match=r"UNUSED in the file: 1\n    conv6_1/kernel\n"):
        load(extra)
    assert load(extra, allow_unused=("conv6_*",))[1].ignored == ("conv6_1/kernel",)


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


def test_an_array_of_another_rank_is_mis_shaped(load, variables):
    with pytest.raises(UserError, match=r"conv1_1/kernel: \(7,\) in the file, \(3, 3, 3, 8\) in"):
        load({"features.0.weight": np.zeros(7, np.float32)})
