"""Several image sizes: one a step in training, all of them in a prediction."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from hlo import QUICK
from same_run import assert_same_run
from tiny import tiny_config

from ssd_jax import experiment
from ssd_jax.config import load_config
from ssd_jax.config_check import check
from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables
from ssd_jax.network import anchors_at, build_network, build_predict
from ssd_jax.ops.boxes import iou_matrix
from ssd_jax.runs import training
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh, put_replicated
from ssd_jax.train.state import TrainState
from ssd_jax.train.step import image_size_of

SIZES = (64, 96)


def config_of(shapes, **changes):
    return tiny_config(
        shapes,
        **{
            "steps": 4,
            "evaluate__every_steps": None,
            "model__backbone": "small",  # and mild augmentation: they compile fast
            "model__width": 0.1,
            "augment__distort__probability": 0.0,
            "augment__crop__min_ious": (),
        }
        | changes,
    )


def sizes_of_steps(steps, sizes, *, seed):
    return [image_size_of(step, sizes, seed=seed) for step in range(steps)]


def test_the_size_of_a_step_is_drawn_by_seed_and_step():
    # As long as these stay, a run that was stopped goes on as it began.
    assert sizes_of_steps(8, SIZES, seed=0) == [64, 64, 96, 96, 64, 96, 64, 96]
    assert sizes_of_steps(50, SIZES, seed=0) != sizes_of_steps(50, SIZES, seed=1)
    drawn = sizes_of_steps(3000, (64, 96, 128), seed=0)
    assert np.allclose([drawn.count(size) for size in (64, 96, 128)], 1000, atol=100)
    assert sizes_of_steps(3, (512,), seed=0) == [512] * 3


def test_anchors_are_as_large_in_pixels_at_every_size(shapes):
    config = config_of(shapes)
    network = build_network(config, 3)
    assert anchors_at(config, network, 64) is network.anchors
    # Of a picture twice as wide, the upper left quarter has the anchors of the whole.
    in_pixels = {tuple(box) for box in (network.anchors * 64).round(3).tolist()}
    twice = {tuple(box) for box in (anchors_at(config, network, 128) * 128).round(3).tolist()}
    assert in_pixels < twice
    assert len(twice) == 4 * len(in_pixels)


def test_a_size_without_room_for_all_maps_is_refused(shapes):
    config = config_of(shapes, model__image_size=128, detect__image_sizes=(128, 64))
    network = build_network(config, 3)
    with pytest.raises(UserError, match=r"image size 64: .* 128 has 5 feature maps, .* gives 4"):
        build_predict(config, network)


@pytest.mark.parametrize("name", ["best_vgg16_512", "best_resnet50_512"])
def test_the_shipped_sizes_are_possible(name):
    folder = pathlib.Path(__file__).parents[1] / "configs"
    config = load_config(f"{folder / name}.py:multi_scale")
    check(config)
    network = build_network(config, 20)
    sizes = config.augment.image_sizes
    assert set(config.detect.image_sizes) < set(sizes)
    for size in (min(sizes), max(sizes)):
        anchors = anchors_at(config, network, size)
        assert len(anchors) == pytest.approx(len(network.anchors) * (size / 512) ** 2, rel=0.02)


def test_the_boxes_of_all_sizes_suppress_each_other(shapes):
    config = config_of(shapes, detect__score_threshold=0.0)
    config.detect.update({"candidates": 2000, "max_detections": 6000})
    network = build_network(config, 3)
    variables = init_variables(network.model, 64, seed=0)
    canvas = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)

    def found(*sizes, iou_threshold):
        config.detect.update({"image_sizes": sizes, "iou_threshold": iou_threshold})
        predict = jax.jit(build_predict(config, network), compiler_options=QUICK)
        rows = jax.device_get(predict(variables, canvas, np.array([[64, 48]])))
        kept = rows.valid[0]
        columns = rows.labels[0, kept], rows.scores[0, kept], rows.boxes[0, kept]
        return np.column_stack(columns)

    def in_order(rows):
        return rows[np.lexsort(rows.T)]

    # With nothing suppressed they are the boxes of each size alone.
    each = np.concatenate([found(size, iou_threshold=1.0) for size in SIZES])
    everything = found(*SIZES, iou_threshold=1.0)
    np.testing.assert_allclose(in_order(everything), in_order(each), atol=1e-5)
    few = found(*SIZES, iou_threshold=0.45)
    assert 0 < len(few) < len(everything)
    for label in range(3):
        boxes = few[few[:, 0] == label, 2:]
        assert np.triu(iou_matrix(boxes, boxes), k=1).max() <= 0.45


def test_every_size_is_compiled_ahead_and_its_memory_told(shapes, capsys):
    config = config_of(shapes, augment__image_sizes=SIZES)
    mesh = make_mesh(jax.devices()[:1])
    state = put_replicated(TrainState(np.int32(0), {}, {}, ()), mesh)
    steps = {
        size: lambda state, batch, size=size: (state.replace(step=state.step + size), {})
        for size in SIZES
    }
    program = training.compiled_steps(
        steps, state, config, experiment.build_source(config, "train"), mesh
    )
    first, second, third, fourth = map(program, range(4))  # 64, 64, 96, 96, as drawn above
    assert first is second is not third is fourth
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == [
        f"{size} px, memory per device" for size in SIZES
    ]


@pytest.mark.long
def test_a_resumed_run_is_bit_equal(shapes, tmp_path):
    config = config_of(shapes, augment__image_sizes=SIZES)
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    mesh = make_mesh(jax.devices()[:1])
    run_training(config, unbroken, mesh=mesh)
    resumed.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(unbroken / name, resumed)
    shutil.copytree(unbroken / "checkpoints/1", resumed / "checkpoints/1")
    run_training(config, resumed, mesh=mesh)
    assert_same_run(resumed, unbroken, config)
