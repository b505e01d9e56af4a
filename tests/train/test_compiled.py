"""The step as a program on eight devices: what it sends, what it needs, what it gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hlo import QUICK, collectives

from ssd_jax import experiment
from ssd_jax.config import default_config
from ssd_jax.data.decode import empty_rows
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.network import build_network
from ssd_jax.ops.augment import Augmentation
from ssd_jax.sharding import BATCH_AXIS, make_mesh, put_batch, shardings_of, whole
from ssd_jax.train.checkpoint import Checkpoints
from ssd_jax.train.compiled import (
    batch_shapes,
    compile_step,
    memory_limit,
    memory_report,
    step_memory,
)
from ssd_jax.train.state import create_state, state_shapes
from ssd_jax.train.step import augment_batch, batch_loss, train_step

ANCHORS = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.5, 0.5, 1]], np.float32)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("vgg16", {"batch_norm": "none"}),
        ("resnet50", {"batch_norm": "batch", "batch_norm_group": 2}),
    ],
)
def test_training_sends_the_gradients_in_at_most_two_all_reduces(backbone, words):
    config = default_config()
    config.steps, config.batch_size = 1, 16
    config.model.update({"backbone": backbone, "image_size": 64, "width": 0.1, **words})
    config.augment.update({"distort": {"probability": 0.0}, "expand": {"probability": 0.0}})
    config.augment.crop.min_ious = ()
    network, mesh = build_network(config, 3), make_mesh()
    schedule = experiment.build_schedule(config, images=100)
    optimizer = experiment.build_optimizer(config, schedule)
    variables = variable_shapes(network.model, 64)
    compiled = compile_step(
        experiment.build_step(config, network, schedule, optimizer, mesh),
        state_shapes(variables, optimizer, mesh),
        batch_shapes(16, canvas=64, max_objects=2, mesh=mesh),
        mesh,
        options=QUICK,
    )
    sent = collectives(compiled.as_text())
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert {kind for kind, _ in sent} == {"all-reduce"}
    assert len(sent) <= 2
    assert gradients <= sum(size for _, size in sent) <= 1.02 * gradients


class TwoLayers(nn.Module):
    """Kernels that eight devices divide along one axis or the other, and one that they do not."""

    @nn.compact
    def __call__(self, images, *, train):
        features = nn.relu(nn.Dense(64, name="wide")(images.reshape(len(images), -1)))
        features = nn.Dense(7, name="odd")(nn.relu(nn.Dense(24, name="narrow")(features)))
        outputs = nn.Dense(3 * 6, name="head")(features).reshape(-1, 3, 6)
        return outputs[..., :4], outputs[..., 4:]


OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))


def new_state(sharding):
    variables = TwoLayers().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=True)
    return create_state(jax.device_get(variables), OPTIMIZER, make_mesh(), sharding=sharding)


@functools.cache
def program(sharding):
    mesh = make_mesh()
    step = functools.partial(
        train_step,
        mesh=mesh,
        sharding=sharding,
        model=TwoLayers(),
        optimizer=OPTIMIZER,
        schedule=lambda _: 0.1,
        augment=functools.partial(
            augment_batch,
            seed=3,
            image_size=8,
            settings=Augmentation(distort=None, crop=None),
            fill=(0.0, 0.0, 0.0),
        ),
        loss=functools.partial(batch_loss, anchors=ANCHORS, batch_axis=BATCH_AXIS),
        mean=(127.0,) * 3,
        std=(64.0,) * 3,
    )
    batch = batch_shapes(16, canvas=8, max_objects=1, mesh=mesh)
    return compile_step(step, new_state(sharding), batch, mesh, options=QUICK)


def batch(step):
    rng = np.random.default_rng(step)
    rows = empty_rows(16, canvas=8, max_objects=1)
    rows.canvas[:] = rng.integers(0, 256, rows.canvas.shape)
    rows.extent[:], rows.size[:] = 8, 8
    rows.boxes[:] = ANCHORS[rng.integers(0, 3, (16, 1))]
    rows.labels[:] = 0
    rows.valid[:] = True
    rows.sample_id[:] = np.arange(16)
    return put_batch(rows, make_mesh())


def assert_close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


def bytes_on_a_device(state):
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))


def test_fsdp_trains_to_the_same_parameters_with_an_eighth_of_the_state():
    one, two = new_state("replicated"), new_state("fsdp")
    places = shardings_of(two)
    assert bytes_on_a_device(two) < 0.15 * bytes_on_a_device(one)
    for step in range(3):
        one, metrics = program("replicated")(one, batch(step))
        two, same_metrics = program("fsdp")(two, batch(step))
        assert_close(metrics, same_metrics)
    assert shardings_of(two) == places
    assert_close(one, two)
    assert not np.array_equal(
        one.params["odd"]["kernel"], new_state("fsdp").params["odd"]["kernel"]
    )


def test_fsdp_gathers_the_parameters_and_scatters_the_gradients():
    sent = collectives(program("fsdp").as_text())
    kernels = {"wide": 192 * 64, "narrow": 64 * 24, "head": 0, "odd": 24 * 7}
    assert sum(size for kind, size in sent if kind == "all-gather") == 4 * sum(kernels.values())
    assert sum(size for kind, size in sent if kind == "reduce-scatter") == sum(kernels.values()) / 2
    assert {kind for kind, _ in collectives(program("replicated").as_text())} == {"all-reduce"}


def test_memory_is_told_for_one_device():
    memory = {name: step_memory(program(name)) for name in ("replicated", "fsdp")}
    for name, state in (("replicated", new_state("replicated")), ("fsdp", new_state("fsdp"))):
        rows = bytes_on_a_device(batch(0))
        unused = memory[name].arguments - bytes_on_a_device(state) - rows
        assert -rows < unused <= 0  # columns that the step does not read need not be there
    assert memory["fsdp"].arguments < memory["replicated"].arguments
    assert 0 < memory["replicated"].total < memory_limit(make_mesh())
    line = memory_report(program("fsdp"), make_mesh())
    assert line.startswith("memory per device: 0.00 GiB of ")
    assert "does not fit" not in line
    assert "data.cache" not in line
    line = memory_report(program("fsdp"), make_mesh(), kept=2**50)
    assert "0.00 GiB of the 0.00 GiB that data.cache leaves, " in line
    assert "does not fit" in line
    assert "config.data.cache=none" in line


@pytest.mark.parametrize(("saved", "restored"), [("fsdp", "replicated"), ("replicated", "fsdp")])
def test_a_checkpoint_does_not_depend_on_how_the_state_lay(saved, restored, tmp_path):
    state, like = new_state(saved), new_state(restored)
    state, _ = program(saved)(state, batch(0))
    with Checkpoints(tmp_path, metric="mAP") as checkpoints:
        checkpoints.save(state, None, classes=("a",))
    with Checkpoints(tmp_path, metric="mAP") as checkpoints:
        got = checkpoints.restore(1, like, classes=("a",))
    assert shardings_of(got) == shardings_of(like)
    jax.tree.map(np.testing.assert_array_equal, got, state)
    jax.tree.map(np.testing.assert_array_equal, whole(got, make_mesh()), state)
