import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables, variable_shapes
from ssd_jax.models.ssd import Heads, build_model, feature_shapes, map_shapes

SSD300_ANCHORS = (4, 6, 6, 6, 4, 4)
SSD512_ANCHORS = (4, 6, 6, 6, 6, 4, 4)

IMAGES = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)

# 64 px: maps of 8, 4, 2, 1, so 4 * 64 + 6 * 16 + 6 * 4 + 4 = 380 anchors
tiny = functools.partial(
    build_model,
    backbone="vgg16",
    num_classes=3,
    image_size=64,
    anchors_per_cell=(4, 6, 6, 4),
    width=1 / 64,
)


def run(function, *arguments):
    """Jit and run; hardly optimised, for these networks compile for longer than they run."""
    fast = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
    return jax.device_get(fast(*arguments))


@pytest.mark.parametrize(
    ("backbone", "image_size", "sides"),
    [
        ("vgg16", 300, (38, 19, 10, 5, 3, 1)),
        ("vgg16", 512, (64, 32, 16, 8, 4, 2, 1)),
        ("vgg16", 192, (24, 12, 6, 3, 1)),
        ("vgg16", 128, (16, 8, 4, 2)),
        ("vgg16", 96, (12, 6, 3, 2)),
        ("vgg16", 64, (8, 4, 2, 1)),
        ("resnet50", 512, (32, 16, 8, 4, 2, 1)),
        ("resnet50", 300, (19, 10, 5, 3, 2, 1)),
        ("resnet50", 64, (4, 2, 1)),
        ("resnet50_v1", 512, (32, 16, 8, 4, 2, 1)),
        ("resnet50_v2", 300, (19, 10, 5, 3, 2, 1)),
    ],
)
def test_feature_shapes(backbone, image_size, sides):
    shapes = feature_shapes(backbone=backbone, image_size=image_size)
    assert shapes == tuple((side, side) for side in sides)


@pytest.mark.parametrize(
    ("backbone", "image_size", "sides"),
    [
        ("vgg16", 300, (38, 19, 10, 5, 3, 1)),
        ("vgg16", 448, (56, 28, 14, 7, 4, 2, 2)),
        ("vgg16", 512, (64, 32, 16, 8, 4, 2, 2)),
        ("resnet50_v2", 512, (32, 16, 8, 4, 2, 1)),
        ("resnet50_v2", 256, (16, 8, 4, 2, 1, 1)),
    ],
)
def test_feature_shapes_of_mxnet_ssd(backbone, image_size, sides):
    shapes = feature_shapes(backbone=backbone, image_size=image_size, extras="mxnet")
    assert shapes == tuple((side, side) for side in sides)


def test_a_finer_stage_of_the_resnet_is_one_more_level():
    shapes = feature_shapes(backbone="resnet50", image_size=128, first_stage=2)
    assert shapes == ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))


@pytest.mark.parametrize(
    ("backbone", "extras", "image_size", "anchors_per_cell", "anchors", "parameters"),
    [
        # 26,285,486: also the count of amdegroot/ssd.pytorch for 21 classes with background
        ("vgg16", "paper", 300, SSD300_ANCHORS, 8_732, 26_285_486),
        # also the count of mxnet-ssd's legacy_vgg16_ssd_512
        ("vgg16", "paper", 512, SSD512_ANCHORS, 24_564, 27_188_676),
        ("resnet50", "paper", 512, SSD300_ANCHORS, 6_132, 36_450_094),
        # 512 + 512 + 512 + 512 + 4 * 256 scales less
        ("resnet50_v1", "paper", 512, SSD300_ANCHORS, 6_132, 36_450_094 - 3_072),
        # the counts of mxnet-ssd, which has three parameters for a scale that it fixes
        ("vgg16", "mxnet", 512, SSD512_ANCHORS, 24_576, 26_959_300),
        ("resnet50_v2", "mxnet", 512, SSD300_ANCHORS, 6_132, 31_140_020 - 3),
    ],
)
def test_full_size_networks(backbone, extras, image_size, anchors_per_cell, anchors, parameters):
    model = build_model(
        backbone=backbone,
        num_classes=20,
        image_size=image_size,
        anchors_per_cell=anchors_per_cell,
        extras=extras,
        batch_norm="none" if backbone == "vgg16" else "frozen",
    )
    images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)
    (box_deltas, class_logits), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert box_deltas.shape == (2, anchors, 4)
    assert class_logits.shape == (2, anchors, 21)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters


@pytest.mark.parametrize(
    ("backbone", "extras", "anchors", "total"),
    [
        ("vgg16", "paper", (4, 6, 6, 4), 380),
        ("resnet50", "paper", (4, 6, 4), 4 * 16 + 6 * 4 + 4),
        ("resnet50_v2", "mxnet", (4, 6, 6, 6, 4, 4), 4 * 16 + 6 * 4 + 6 + 6 + 4 + 4),
    ],
)
def test_a_training_pass_is_finite_and_moves_every_statistic(backbone, extras, anchors, total):
    model = tiny(
        backbone=backbone,
        extras=extras,
        anchors_per_cell=anchors,
        batch_norm="batch",
        batch_norm_group=1,
    )
    variables = init_variables(model, 64, seed=0)
    (box_deltas, class_logits), state = run(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]), variables, IMAGES
    )
    assert box_deltas.shape == (2, total, 4)
    assert class_logits.shape == (2, total, 4)
    assert np.isfinite(box_deltas).all()
    assert np.isfinite(class_logits).all()
    before, after = variables["batch_stats"], state["batch_stats"]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))


@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_the_choice_of_batch_norm_reaches_the_layers(batch_norm):
    model = tiny(batch_norm=batch_norm, batch_norm_group=2)
    three = jnp.zeros((3, 64, 64, 3))
    variables = variable_shapes(model, 64)
    refused = (
        pytest.raises(UserError, match="groups of 2") if batch_norm == "batch" else nullcontext()
    )
    with refused:
        jax.eval_shape(
            lambda v: model.apply(v, three, train=True, mutable=["batch_stats"]), variables
        )


def test_bfloat16_agrees_with_float32_and_both_answer_in_float32():
    exact, rough = tiny(), tiny(dtype="bfloat16")
    variables = init_variables(exact, 64, seed=0)
    outputs = [
        run(lambda v, x, model=model: model.apply(v, x, train=False), variables, IMAGES[:1])
        for model in (exact, rough)
    ]
    for a, b in zip(*outputs, strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_heads_lay_anchors_out_by_level_row_column_and_anchor():
    """Kernels that read one pixel's two channels make every output tell where it comes from."""
    fine = jnp.asarray(np.stack(np.mgrid[:2, :3], -1)[None], jnp.float32)
    coarse = jnp.full((1, 1, 1, 2), 9.0)
    heads = Heads(anchors_per_cell=(2, 1), num_classes=1)
    shapes = jax.eval_shape(lambda x: heads.init(jax.random.key(0), x), (fine, coarse))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes["params"])
    # channels: anchor * 4 + coordinate, here (row, column, anchor, 7)
    params["box_0"]["kernel"][1, 1, 0, [0, 4]] = 1
    params["box_0"]["kernel"][1, 1, 1, [1, 5]] = 1
    params["box_0"]["bias"][:] = [0, 0, 0, 7, 0, 0, 1, 7]
    # channels: anchor * (1 + C) + class
    params["class_0"]["bias"][:] = [0, 1, 10, 11]
    params["class_1"]["bias"][:] = [20, 21]
    box_deltas, class_logits = run(heads.apply, {"params": params}, (fine, coarse))
    expected = [[r, c, a, 7] for r in range(2) for c in range(3) for a in range(2)]
    np.testing.assert_array_equal(box_deltas[0], [*expected, [0, 0, 0, 0]])
    np.testing.assert_array_equal(class_logits[0], [[0, 1], [10, 11]] * 6 + [[20, 21]])


@pytest.mark.parametrize(
    ("backbone", "parameters", "epsilon"),
    [("resnet50", {"scale", "bias"}, 1e-4), ("resnet50_v1", {"bias"}, 1e-3)],
)
def test_extra_layers_behind_gluoncvs_resnet_have_its_batch_norm(backbone, parameters, epsilon):
    words = {"batch_norm": "batch", "batch_norm_epsilon": 1e-4}
    model = tiny(backbone=backbone, anchors_per_cell=(4, 6, 4), **words)
    layers = variable_shapes(model, 64)["params"]["extras"]
    assert set(layers["conv6_1"]) == {"kernel"}
    assert set(layers["conv6_1_bn"]) == parameters
    assert model.extras.style.batch_norm_epsilon == epsilon


def test_extra_layers_of_mxnet_go_on_at_1x1_with_biases_and_without_batch_norm():
    anchors = (4, 6, 6, 6, 4, 4)
    words = {"backbone": "resnet50_v2", "extras": "mxnet", "batch_norm": "batch"}
    layers = variable_shapes(tiny(anchors_per_cell=anchors, **words), 64)["params"]["extras"]
    assert set(layers) == {f"conv{i}_{j}" for i in (6, 7, 8, 9) for j in (1, 2)}
    assert all(set(layer) == {"kernel", "bias"} for layer in layers.values())


def test_extra_layers_stop_where_the_next_kernel_does_not_fit():
    params = variable_shapes(tiny(image_size=128), 128)["params"]
    assert set(params["extras"]) == {"conv6_1", "conv6_2", "conv7_1", "conv7_2"}


def test_words_of_the_normalisations_reach_the_backbone():
    words = {
        "batch_norm": "batch",
        "batch_norm_group": 4,
        "batch_norm_epsilon": 1e-4,
        "batch_norm_momentum": 0.7,
        "batch_axis": "data",
    }
    model = tiny(l2_epsilon=1e-5, **words)
    assert model.backbone.l2_epsilon == 1e-5
    for style in (model.backbone.style, model.extras.style):
        assert {name: getattr(style, name) for name in words} == words


def test_the_words_of_the_heads_and_the_width_of_a_pyramid_are_those_of_the_network():
    model = tiny(class_activation="sigmoid", fpn_channels=256, width=1 / 16)
    assert model.heads.class_activation == "sigmoid"
    assert model.fpn.channels == 256 / 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": "vgg19"}, r"backbone: got 'vgg19', expected one of resnet50, resnet50_v1"),
        ({"extras": "caffe"}, r"extras: got 'caffe', expected one of paper, mxnet"),
        ({"dtype": "float16"}, r"dtype: got 'float16', expected one of float32, bfloat16"),
        ({"batch_norm": "sync"}, r"batch_norm: got 'sync', expected one of none, frozen, b"),
        ({"image_size": 32}, r"image_size is 32; expected .* at least 64"),
        ({"anchors_per_cell": (4, 6)}, r"2 entries \(4, 6\), but the network has 4 feature maps"),
        ({"first_stage": 3}, r"config\.model\.first_stage: got 3, but only a ResNet"),
        ({"backbone": "resnet50"}, r"does not train with batch_norm \"none\""),
        (
            {"backbone": "resnet50", "batch_norm": "batch", "first_stage": 5},
            r"first_stage: got 5, expected one of 1, 2, 3, 4",
        ),
    ],
)
def test_impossible_networks_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        tiny(**wrong)


def test_a_larger_image_has_the_same_maps_and_variables():
    # It has room for a fifth map, which has no heads.
    assert len(feature_shapes(backbone="vgg16", image_size=192)) == 5
    assert map_shapes(tiny(), 192) == ((24, 24), (12, 12), (6, 6), (3, 3))
    assert variable_shapes(tiny(), 192) == variable_shapes(tiny(), 64)


def test_an_image_too_small_for_all_maps_is_refused():
    larger = tiny(image_size=192, anchors_per_cell=(4, 6, 6, 4, 4))
    assert len(map_shapes(larger, 64)) == 4
    with pytest.raises(UserError, match=r"5 entries .* but the network has 4 feature maps"):
        init_variables(larger, 64, seed=0)
