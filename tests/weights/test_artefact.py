import copy

import numpy as np
import pytest
from weights.sagemaker_files import Made, tar_bytes

from ssd_jax.errors import UserError
from ssd_jax.models.ssd import feature_shapes
from ssd_jax.ops.anchors import default_boxes
from ssd_jax.weights.artefact import read_artefact


@pytest.fixture(scope="module")
def made():
    return Made("resnet-50", image_size=300, num_classes=3)


@pytest.fixture
def resnet(made):
    """One that a test may change."""
    return copy.deepcopy(made)


def test_the_network_its_classes_and_its_thresholds_are_read(resnet, tmp_path):
    artefact = read_artefact(resnet.write(tmp_path / "model.tar.gz"))
    assert artefact.num_classes == 3
    assert artefact.settings == {
        "model.backbone": "resnet50_v2",
        "model.extras": "mxnet",
        "model.image_size": 300,
        "model.batch_norm": "batch",
        "model.batch_norm_epsilon": 2e-5,
        "model.batch_norm_momentum": 0.9,
        "anchors.layout": "mxnet",
        "detect.score_threshold": 0.01,
        "detect.iou_threshold": 0.45,
        "detect.force_suppress": False,
        "detect.candidates": 400,
        "detect.max_detections": 400,
        "detect.class_per_anchor": "best",
        "evaluate.iou_threshold": 0.5,
    }


def test_the_anchors_are_those_of_the_symbol(resnet, tmp_path):
    artefact = read_artefact(resnet.write(tmp_path / "model.tar.gz"))
    shapes = feature_shapes(backbone="resnet50_v2", image_size=300, extras="mxnet")
    got, expected = (default_boxes(shapes, levels) for levels in (artefact.levels, resnet.levels))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_arrays_are_those_of_the_params(resnet, tmp_path):
    weights = read_artefact(resnet.write(tmp_path / "model.tar.gz")).weights
    assert weights.tensors.keys() == resnet.params.keys()
    for name, array in resnet.params.items():
        np.testing.assert_array_equal(weights.tensors[name], array)
    assert len(weights.metadata["sha256"]) == 64


def test_a_vgg_has_no_batch_norm_and_other_steps(tmp_path):
    vgg = Made("vgg-16", image_size=300, num_classes=20)
    artefact = read_artefact(vgg.write(tmp_path / "model.tar.gz"))
    assert artefact.num_classes == 20
    assert artefact.settings["model.backbone"] == "vgg16"
    assert artefact.settings["model.batch_norm"] == "none"
    assert [level.steps for level in artefact.levels] == [level.steps for level in vgg.levels]


def test_the_caffe_compatible_vgg_is_told_by_its_layers(tmp_path):
    vgg = Made("vgg-16", image_size=300, num_classes=20)
    for node in vgg.symbol["nodes"]:
        if node["name"] == "multi_feat_2_conv_1x1_conv":
            node["name"] = "conv8_2"
    settings = read_artefact(vgg.write(tmp_path / "model.tar.gz")).settings
    assert settings["model.extras"] == "paper"
    assert settings["anchors.layout"] == "mxnet_legacy"


def test_where_the_symbol_is_silent_it_is_as_mxnet_takes_it(resnet, tmp_path):
    for node in resnet.symbol["nodes"]:
        if node["op"] == "BatchNorm":
            node["attrs"] = {"fix_gamma": "False", "use_global_stats": "True"}
            if node["name"] == "bn_data":
                del node["attrs"]["fix_gamma"]
    resnet.node("_contrib_MultiBoxDetection")["attrs"] = {"nms_topk": "100"}
    del resnet.hyperparams["overlap_threshold"]
    settings = read_artefact(resnet.write(tmp_path / "model.tar.gz")).settings
    assert {name: settings[name] for name in settings if name.startswith("model.batch_norm")} == {
        "model.batch_norm": "frozen",
        "model.batch_norm_epsilon": 1e-3,
        "model.batch_norm_momentum": 0.9,
    }
    assert settings["detect.score_threshold"] == 0.01
    assert settings["detect.iou_threshold"] == 0.5
    assert settings["detect.force_suppress"] is False
    assert settings["evaluate.iou_threshold"] == 0.5


@pytest.mark.parametrize("key", ["attr", "param"])
def test_older_symbols_call_the_arguments_otherwise(resnet, tmp_path, key):
    expected = read_artefact(resnet.write(tmp_path / "new"))
    for node in resnet.symbol["nodes"]:
        node[key] = node.pop("attrs", {})
    assert read_artefact(resnet.write(tmp_path / "old")).settings == expected.settings


def set_argument(op, **arguments):
    return lambda made: made.node(op)["attrs"].update(arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda made: made.hyperparams.update(num_classes="4"),
            "says 4 classes, but the symbol has 3",
        ),
        (
            lambda made: made.hyperparams.pop("image_shape"),
            "cannot be read .KeyError.'image_shape'",
        ),
        (lambda made: made.hyperparams.update(image_shape="1e9"), "cannot be read"),
        (lambda made: made.hyperparams.update(image_shape="99999"), "expected at most 4096"),
        (
            lambda made: made.symbol.update(nodes=made.symbol["nodes"][:-1]),
            "has 0 operators _contri",
        ),
        (lambda made: made.symbol.update(nodes=[]), r"class heads of the symbol have \[\]"),
        (lambda made: made.symbol.update(nodes=7), "cannot be read"),
        (set_argument("_contrib_MultiBoxPrior", clip="True"), "clips its anchors"),
        (set_argument("_contrib_MultiBoxPrior", sizes="(nan, 1)"), "cannot be read"),
        (set_argument("_contrib_MultiBoxPrior", sizes="()", ratios="(1)"), "expected some of each"),
        (set_argument("_contrib_MultiBoxPrior", ratios="(1,-2,0.5)"), "expected some of each"),
        (set_argument("_contrib_MultiBoxPrior", ratios="(1,0)"), "expected some of each"),
        (set_argument("_contrib_MultiBoxPrior", steps="(0.1)"), "cannot be read"),
        (set_argument("_contrib_MultiBoxPrior", offsets="(0.5)"), "cannot be read"),
        (lambda made: made.hyperparams.update(image_shape=float("inf")), "cannot be read"),
        (set_argument("_contrib_MultiBoxPrior", ratios="(1,2)"), r"heads of the symbol have \[4"),
        (set_argument("_contrib_MultiBoxDetection", nms_topk="-1"), "an nms_topk above 0"),
        (set_argument("_contrib_MultiBoxDetection", clip="False"), "expected an nms_topk above"),
        (set_argument("_contrib_MultiBoxDetection", variances="(1,1,1,1)"), r"variances \(1.0, 1"),
        (set_argument("BatchNorm", eps="1e-3"), "BatchNorm layers of the symbol differ"),
        (set_argument("BatchNorm", fix_gamma="True"), "their fix_gamma is not as in mxnet-ssd"),
    ],
)
def test_what_is_not_such_a_detector_is_refused(resnet, tmp_path, change, message):
    change(resnet)
    with pytest.raises(UserError, match=rf"model\.tar\.gz: .*{message}"):
        read_artefact(resnet.write(tmp_path / "model.tar.gz"))


def test_another_network_is_refused(resnet, tmp_path):
    for node in resnet.symbol["nodes"]:
        node["name"] = node["name"].replace("stage", "dense").replace("multi_feat_2", "extra")
    with pytest.raises(UserError, match="the network of the symbol is not known"):
        read_artefact(resnet.write(tmp_path / "model.tar.gz"))


def test_what_macos_adds_to_an_archive_is_passed_over(resnet, tmp_path):
    files = resnet.files()
    files = {f"._{name}": b"\0\5\x16\7" for name in files} | files
    (tmp_path / "model.tar.gz").write_bytes(tar_bytes(files))
    assert read_artefact(tmp_path / "model.tar.gz").num_classes == 3


@pytest.mark.parametrize("ending", [".params", "-symbol.json", "hyperparams.json"])
def test_an_archive_without_one_of_the_files_is_refused(resnet, tmp_path, ending):
    files = resnet.files()
    files["other"] = files.pop(next(name for name in files if name.endswith(ending)))
    (tmp_path / "model.tar.gz").write_bytes(tar_bytes(files))
    with pytest.raises(UserError, match=r"got 0 files called \*.*among \['"):
        read_artefact(tmp_path / "model.tar.gz")


@pytest.mark.parametrize("text", [b"", b"[" * 100_000, b"\xff", b"[]", b"3", b'{"nodes": [{}]}'])
@pytest.mark.parametrize("name", ["model_algo_1-symbol.json", "hyperparams.json"])
def test_hostile_json_is_refused(resnet, tmp_path, name, text):
    (tmp_path / "model.tar.gz").write_bytes(tar_bytes({**resnet.files(), name: text}))
    with pytest.raises(UserError, match=r"model\.tar\.gz: its symbol or hyperparams\.json cannot"):
        read_artefact(tmp_path / "model.tar.gz")


def test_json_of_any_size_is_not_read(resnet, tmp_path, monkeypatch):
    monkeypatch.setattr("ssd_jax.weights.artefact._LARGEST_JSON", 100)
    with pytest.raises(UserError, match=r"a JSON file has \d+ bytes, expected some hundred kB"):
        read_artefact(resnet.write(tmp_path / "model.tar.gz"))
