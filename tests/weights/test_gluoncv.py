"""Files as GluonCV writes them, made up: a detector under both kinds of names, a classifier."""

import jax
import numpy as np
import pytest
from weights.mxnet_files import params_bytes

from ssd_jax.errors import UserError
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.models.ssd import build_model
from ssd_jax.weights.load import load_weights
from ssd_jax.weights.maps_gluoncv import RESNET50_GLUON, RESNET50_GLUONCV, VGG16_GLUONCV

EPSILON = 1e-5
DETECTORS = ("save_parameters", "save_params")
# What such a file holds beyond our network.
NOT_FOR_US = {
    "save_parameters": ("anchor_generators.0.anchors", "features.expand_trans_bn0_gamma"),
    "save_params": ("expand_bn3_gamma", "ssdanchorgenerator5_anchor_5"),
    "classifier": ("output.bias", "output.weight"),
}


def layout_of(form):
    return RESNET50_GLUONCV if form in DETECTORS else RESNET50_GLUON


def of_form(form, names):
    """The names that a file of this form has; `save_params` writes no dots."""
    return {name for name in names if ("." in name) == (form != "save_params")}


@pytest.fixture(scope="module")
def shapes():
    """A thin network with three feature maps."""
    model = build_model(
        backbone="resnet50_v1",
        num_classes=2,
        image_size=64,
        anchors_per_cell=(4,) * 3,
        width=1 / 64,
        batch_norm="frozen",
    )
    return variable_shapes(model, 64)


@pytest.fixture(params=NOT_FOR_US)
def form(request):
    return request.param


@pytest.fixture
def tensors(form, shapes):
    """What a file of this form would hold of that network."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    ours = {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}
    layout = layout_of(form)
    paths = {name: target.path for name, target in layout.targets.items()} | layout.biases
    rng = np.random.default_rng(0)
    tensors = {}
    for name in sorted(of_form(form, paths)):
        if paths[name] in ours:
            *window, size = ours[paths[name]]
            shape = (size, *window[2:], *window[:2])  # HWIO to OIHW
            tensors[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return tensors


@pytest.fixture
def load(tmp_path, shapes):
    def load(tensors):
        (tmp_path / "w.params").write_bytes(params_bytes(tensors))
        return load_weights(shapes, tmp_path / "w.params", backbone="resnet50_v1")

    return load


@pytest.mark.parametrize("form", DETECTORS)
@pytest.mark.parametrize(
    "layout", [VGG16_GLUONCV, RESNET50_GLUONCV], ids=lambda layout: layout.name
)
def test_each_form_of_names_fills_the_whole_detector(layout, form):
    names = of_form(form, layout.targets)
    assert len(names) == len(layout.targets) / 2
    everything = {target.path for target in layout.targets.values()}
    assert {layout.targets[name].path for name in names} == everything
    assert {layout.biases[name] for name in of_form(form, layout.biases)} == {
        *layout.biases.values()
    }


@pytest.mark.parametrize(
    ("layout", "names", "path"),
    [
        (
            VGG16_GLUONCV,
            ("features.stages.4.2.weight", "vggatrousextractor0_conv11_weight"),
            "params/backbone/conv5_2/kernel",
        ),
        (
            VGG16_GLUONCV,
            ("features.extras.4.2.bias", "vggatrousextractor0_extra4_conv1_bias"),
            "params/extras/conv10_2/bias",
        ),
        (
            VGG16_GLUONCV,
            ("box_predictors.6.predictor.weight", "convpredictor13_conv0_weight"),
            "params/heads/box_6/kernel",
        ),
        (
            RESNET50_GLUONCV,
            ("features.resnetv10_stage2_conv3_weight", "resnetv10_stage2_conv3_weight"),
            "params/backbone/stage2_block1/shortcut/kernel",
        ),
        (
            RESNET50_GLUONCV,
            ("features.resnetv10_stage4_batchnorm9_running_var",),
            "batch_stats/backbone/stage4_block3/conv3_bn/var",
        ),
        (
            RESNET50_GLUONCV,
            ("features.expand_trans_bn3_moving_mean", "expand_trans_bn3_moving_mean"),
            "batch_stats/extras/conv9_1_bn/mean",
        ),
        (
            RESNET50_GLUONCV,
            ("class_predictors.5.predictor.bias", "convpredictor10_conv0_bias"),
            "params/heads/class_5/bias",
        ),
        (
            RESNET50_GLUON,
            ("features.7.2.body.7.running_mean",),
            "batch_stats/backbone/stage4_block3/conv3_bn/mean",
        ),
        (
            RESNET50_GLUON,
            ("features.5.0.downsample.0.weight",),
            "params/backbone/stage2_block1/shortcut/kernel",
        ),
    ],
)
def test_names_that_mxnet_writes(layout, names, path):
    assert {layout.targets[name].path for name in names} == {path}


def test_every_array_has_its_place(form, tensors, load, shapes):
    extra = {name: np.ones(2, np.float32) for name in NOT_FOR_US[form]}
    _, report = load({**tensors, **extra})
    assert report.layout == layout_of(form).name
    assert report.ignored == NOT_FOR_US[form]
    assert len(report.loaded) + len(report.kept) == len(jax.tree.leaves(shapes))
    assert all(("/extras/" in path or "/heads/" in path) for path in report.kept)
    assert bool(report.kept) == (form == "classifier")
    biases = of_form(form, layout_of(form).biases)
    assert len(report.loaded) == len(tensors) - len(biases)


def test_a_bias_before_batch_norm_leaves_what_is_computed_as_it_is(form, tensors, load):
    layout = layout_of(form)
    loaded, _ = load(tensors)
    x = np.random.default_rng(1).normal(size=(3, 1024))
    biases = of_form(form, layout.biases)
    assert len(biases) == 2 * 16
    for bias in biases:
        *_, block, norm, _ = layout.biases[bias].split("/")
        ours = loaded["params"]["backbone"][block]
        running = loaded["batch_stats"]["backbone"][block][norm]
        theirs = {
            target.path.split("/")[-1]: tensors[name]
            for name, target in layout.targets.items()
            if f"/{block}/{norm}/" in target.path and name in tensors
        }
        kernel = tensors[bias.removesuffix("bias") + "weight"][:, :, 0, 0]
        y = x[:, : kernel.shape[1]] @ kernel.T + tensors[bias]
        expected = (y - theirs["mean"]) / np.sqrt(theirs["var"] + EPSILON)
        expected = expected * theirs["scale"] + theirs["bias"]
        kernel = ours[norm.removesuffix("_bn")]["kernel"][0, 0]
        y = x[:, : kernel.shape[0]] @ kernel
        got = (y - running["mean"]) / np.sqrt(running["var"] + EPSILON)
        got = got * ours[norm]["scale"] + ours[norm]["bias"]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_missing_and_an_unknown_array_are_reported(tensors, load):
    shortcut = "stage1_block1/shortcut/kernel"
    targets = {**RESNET50_GLUONCV.targets, **RESNET50_GLUON.targets}
    without = {
        name: array
        for name, array in tensors.items()
        if name not in targets or not targets[name].path.endswith(shortcut)
    }
    with pytest.raises(
        UserError, match=rf"MISSING in the file: 1\n    params/backbone/{shortcut}\n"
    ):
        load(without)
    with pytest.raises(UserError, match=r"UNUSED in the file: 1\n    stage5_conv0_weight\n"):
        load({**tensors, "stage5_conv0_weight": np.ones(2, np.float32)})
