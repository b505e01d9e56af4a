"""All parts of the recipe `best` in one run: it learns, resumes exactly, and shards."""

import shutil

import jax
import numpy as np
import pytest
from hlo import QUICK
from same_run import assert_same_run, final_variables
from test_shipped_configs import fake_batch
from tiny import tiny_config

from ssd_jax import experiment
from ssd_jax.config import save_config
from ssd_jax.detector import open_checkpoints
from ssd_jax.errors import UserError
from ssd_jax.models.initialise import init_variables
from ssd_jax.network import build_network
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh, put_batch, shardings_of


def best_config(shapes, **changes):
    return tiny_config(
        shapes,
        **{
            "steps": 4,
            "evaluate__every_steps": None,
            "model__backbone": "small",  # and mild augmentation: they compile fast
            "model__fpn_channels": 400,
            "augment__distort__probability": 0.0,
            "augment__crop__min_ious": (),
            "model__class_activation": "sigmoid",
            "loss__class_loss": "quality_focal",
            "loss__box_loss": "ciou",
            "augment__mosaic__probability": 0.5,
            "optimizer__schedule": "cosine",
            "optimizer__ema_decay": 0.9,
            "detect__nms": "gaussian",
            "detect__flip": True,
        }
        | changes,
    )


def step_of(config, mesh):
    """A compiled step of the config, and the state before it."""
    network = build_network(config, 3)
    schedule = experiment.build_schedule(config, images=20)
    optimizer = experiment.build_optimizer(config, schedule)
    variables = init_variables(network.model, 64, seed=0)
    state = experiment.build_state(config, variables, optimizer, mesh)
    step = experiment.build_step(config, network, schedule, optimizer, mesh)
    return jax.jit(step, compiler_options=QUICK, out_shardings=(shardings_of(state), None)), state


def test_a_step_is_the_same_on_one_device_and_cut_over_two(shapes, tmp_path):
    batch = fake_batch(8)
    outcomes = []
    for devices, sharding in ((1, "replicated"), (2, "fsdp")):
        mesh = make_mesh(jax.devices()[:devices])
        step, before = step_of(best_config(shapes, sharding=sharding), mesh)
        state, metrics = step(before, put_batch(batch, mesh))
        outcomes.append(jax.device_get((metrics, state.variables)))
        moved = jax.tree.map(
            lambda old, new, average: np.allclose(average, new + 0.1 * (old - new), atol=1e-6),
            *jax.device_get((before.params, state.params, state.average["params"])),
        )
        assert all(jax.tree.leaves(moved))
    one, two = (jax.tree.leaves(outcome) for outcome in outcomes)
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)

    # Restored is the whole; shown is the average, or the weights themselves if asked for.
    config, classes = best_config(shapes), ("a", "b", "c")
    save_config(config, tmp_path / "config.json")
    with open_checkpoints(config, tmp_path) as checkpoints:
        checkpoints.save(state, None, classes=classes)
        again = checkpoints.restore(1, before, classes=classes)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    shown = final_variables(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, shown, state.average)
    own = final_variables(best_config(shapes, optimizer__ema_decay=0.0), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, own["params"], state.params)
    for changes, told in (
        (
            {"model__width": 2.0},
            r"In the run, config\.model\.width was 0\.02 and is 2",
        ),
        ({"model__image_size": 128}, r"config\.model\.image_size was 64 and is 128"),
        ({"data__classes": ("b", "a", "c")}, "got b, a, c, but the run was trained on a, b, c"),
    ):
        with pytest.raises(UserError, match=told):
            final_variables(best_config(shapes, **changes), tmp_path)
    # Neither another dtype nor a list of the same names is another network.
    same = {"model__dtype": "bfloat16", "data__classes": ["a", "b", "c"]}
    assert final_variables(best_config(shapes, **same), tmp_path)


def test_mosaics_need_four_images_on_a_device(shapes):
    mesh = make_mesh(jax.devices()[:4])
    step, state = step_of(best_config(shapes), mesh)
    with pytest.raises(UserError, match="got 2 images on a device, expected a multiple of 4"):
        step.lower(state, put_batch(fake_batch(8), mesh))


def test_mosaics_end_with_their_part_of_the_run(shapes):
    config, batch = best_config(shapes), fake_batch(4)
    config.augment.mosaic.update({"probability": 1.0, "until": 0.5})
    ends, never_ends = (jax.jit(experiment.build_augment(config, n)) for n in (20, None))
    config.augment.mosaic.probability = 0.0
    without = jax.jit(experiment.build_augment(config, 20))

    def steps_without(augment):
        images = [(augment(batch, step)[0], without(batch, step)[0]) for step in range(4)]
        return [step for step, pair in enumerate(images) if np.allclose(*pair, atol=1e-3)]

    assert steps_without(ends) == [2, 3]  # of the four of the run
    assert steps_without(never_ends) == []


def test_a_run_tells_its_augmentation_how_long_it_is(shapes, tmp_path, monkeypatch):
    class Told(Exception):
        pass

    def build_augment(config, images, *, image_size):
        raise Told(images)

    monkeypatch.setattr(experiment, "build_augment", build_augment)
    config = best_config(shapes)
    with pytest.raises(Told, match=str(len(experiment.build_source(config, "train")))):
        run_training(config, tmp_path, mesh=make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def best_run(shapes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("best")
    run_training(best_config(shapes), workdir, mesh=make_mesh(jax.devices()[:2]))
    return workdir


@pytest.mark.long
def test_a_resumed_run_is_bit_equal_and_so_is_its_average(best_run, shapes, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(best_run / name, tmp_path)
    for step in (1, 2):
        shutil.copytree(best_run / f"checkpoints/{step}", tmp_path / f"checkpoints/{step}")
    config = best_config(shapes)
    run_training(config, tmp_path, mesh=make_mesh(jax.devices()[:2]))
    assert_same_run(tmp_path, best_run, config)


@pytest.mark.long
def test_what_is_cut_over_devices_comes_out_alike(best_run, shapes, tmp_path):
    config = best_config(shapes, sharding="fsdp")
    run_training(config, tmp_path, mesh=make_mesh(jax.devices()[:2]))
    for ours, theirs in zip(
        jax.tree.leaves(final_variables(config, tmp_path)),
        jax.tree.leaves(final_variables(config, best_run)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
