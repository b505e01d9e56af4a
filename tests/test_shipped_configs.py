"""Every shipped config builds at full size, and takes a step on fake data at reduced width."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax import config as configs
from ssd_jax import experiment
from ssd_jax.config_check import check
from ssd_jax.models.initialise import init_variables, variable_shapes
from ssd_jax.network import build_network
from ssd_jax.sharding import make_mesh, put_batch
from ssd_jax.types import Batch

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
# Parameters of the whole network with 20 classes, and anchors: the published networks.
FULL_SIZE = {
    "voc0712_vgg16_300": (26_285_486, 8_732),
    "voc0712_vgg16_512": (27_188_676, 24_564),
    "voc0712_resnet50_512": (36_450_094, 6_132),
    # Ours: GluonCV's, but from stride 8 on, 38 x 38 cells.
    "voc0712_resnet50_300": (37_371_844, 8_766),
    # Ours: laterals and outputs of 256 channels, and heads that see no more than that.
    "best_vgg16_512": (30_494_660, 24_564),
    "best_resnet50_512": (38_440_900, 24_564),
}


ELSEWHERE = ("best", "voc0712_resnet50_300", "voc0712_vgg16_512")


def fake_batch(size, canvas=32, objects=2):
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 0.4, (size, objects, 2))
    return Batch(
        canvas=rng.integers(0, 256, (size, canvas, canvas, 3), np.uint8),
        extent=np.full((size, 2), canvas, np.int32),
        size=np.full((size, 2), canvas, np.int32),
        boxes=np.concatenate([corner, corner + 0.5], axis=-1).astype(np.float32),
        labels=rng.integers(0, 3, (size, objects)).astype(np.int32),
        difficult=np.zeros((size, objects), bool),
        valid=np.arange(objects)[None] < np.arange(size)[:, None],  # the first image has no object
        sample_id=np.arange(size, dtype=np.int32),
        real=np.ones(size, bool),
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_config_is_possible_and_documented(file):
    config = configs.load_config(str(file))
    check(config)
    docstring = file.read_text().split('"""')[1]
    published = file.stem.startswith(("voc0712", "best", "coco"))
    for word in ("Run:", *(("Expected:", "Cost:", "Measured:") if published else ())):
        assert word in docstring


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
@pytest.mark.parametrize(("batch_size", "rate"), [(64, 2e-3), (16, 5e-4)])
def test_a_row_of_the_paper_is_its_network_at_another_batch(backbone, batch_size, rate):
    folder = FILES[0].parent
    row = configs.load_config(f"{folder}/voc0712_paper_512.py:{backbone}_{batch_size}")
    check(row)
    network = configs.load_config(f"{folder}/voc0712_{backbone}_512.py")
    theirs, ours = (dict(configs.flat_items(config)) for config in (network, row))
    assert {name: ours[name] for name in ours if ours[name] != theirs[name]} == {
        "batch_size": batch_size,
        "optimizer.learning_rate": rate,
    }


def test_the_network_of_coco_is_torchvisions():
    """Of 91 channels, as `SSD300_VGG16_Weights` says; anchors as in `ssd_coco.py`."""
    config = configs.load_config(str(FILES[0].parent / "coco_vgg16_300.py"))
    network = build_network(config, 90)
    shapes = variable_shapes(network.model, config.model.image_size)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 35_641_826
    first_and_last_map = 300 * (network.anchors[:, 2] - network.anchors[:, 0])[[0, -4]]
    np.testing.assert_allclose(first_and_last_map, [21, 261], rtol=1e-6)
    centres = 300 * (network.anchors[:, 0] + network.anchors[:, 2]) / 2
    assert sorted(set(centres[: 38 * 4].round(3).tolist()))[:2] == [4, 12]
    assert centres[: 38 * 4].max() == pytest.approx(300)  # 38 steps of 8 px, not of 300 / 38


@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_full_network_has_the_published_size(name):
    file = next(file for file in FILES if file.stem == name)
    config = configs.load_config(str(file))
    network = build_network(config, len(config.data.classes))
    shapes = variable_shapes(network.model, config.model.image_size)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert (parameters, len(network.anchors)) == FULL_SIZE[name]


@pytest.mark.parametrize(
    "file",
    # The parts of `best` take a step together in test_best.py; at 512 px they compile for long.
    # The two of `voc0712` are the networks of the others of theirs at another size.
    # The networks of the last two are other files', see above.
    [
        pytest.param(f, marks=[pytest.mark.long] * f.stem.startswith(ELSEWHERE))
        for f in FILES
        if f.stem not in ("voc0712_paper_512", "coco_vgg16_300")
    ],
    ids=lambda file: file.stem,
)
def test_the_config_takes_a_step(file):
    config = configs.load_config(str(file))
    config.batch_size = 2
    config.augment.mosaic.probability = 0.0  # four images; tests/test_best.py has them
    config.model.update({"width": 0.02, "batch_norm_group": 0})
    config.loss.group = 0
    config.optimizer.warmup_steps = 0  # its first rates are lost in the rounding of float32
    mesh = make_mesh(jax.devices()[:1])
    network = build_network(config, 3)
    schedule = experiment.build_schedule(config, images=100)
    optimizer = experiment.build_optimizer(config, schedule)
    variables = init_variables(network.model, config.model.image_size, seed=0)
    state = experiment.build_state(config, variables, optimizer, mesh)
    step = experiment.build_step(config, network, schedule, optimizer, mesh)
    # Compiling is most of the time; without optimisation it is a third of it.
    compiled = (
        jax.jit(step)
        .lower(state, put_batch(fake_batch(2), mesh))
        .compile({"xla_backend_optimization_level": 0})
    )
    after, metrics = compiled(state, put_batch(fake_batch(2), mesh))
    assert int(after.step) == 1
    assert all(jnp.isfinite(value) for value in metrics.values())
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(state.params["heads"]),
            jax.tree.leaves(after.params["heads"]),
            strict=True,
        )
    ]
    assert sum(moved) > len(moved) / 2
