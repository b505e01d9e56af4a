"""What a training begins with."""

import json

import jax
import numpy as np
import pytest
from tiny import tiny_config, write_vgg16

from ssd_jax import experiment
from ssd_jax.detector import load_trained
from ssd_jax.models.initialise import init_variables
from ssd_jax.network import build_network, network_warnings
from ssd_jax.runs import first_state
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("group", "batch_norm", "told"), [(1, "batch", 1), (2, "batch", 0), (1, "frozen", 0)]
)
def test_statistics_of_a_single_value_are_told(shapes, group, batch_norm, told):
    config = tiny_config(shapes, model__batch_norm=batch_norm, model__batch_norm_group=group)
    warnings = network_warnings(config, build_network(config, 3))
    assert [warning[:28] for warning in warnings] == ["BatchNorm over one image has"] * told


@pytest.fixture
def lacking(shapes, tmp_path):
    """A config whose weights lack fc6 and fc7 and are loud below them, and what it begins with."""
    config = tiny_config(shapes, model__batch_norm="none", steps=1, evaluate__every_steps=1)
    config.optimizer.rate_multipliers = (("params/backbone/*", 0.0),)
    network = build_network(config, 3)
    first = init_variables(network.model, 64, seed=config.seed)["params"]["backbone"]
    loud = first["conv5_3"] | {"kernel": 1e4 * first["conv5_3"]["kernel"]}
    config.weights.path = write_vgg16(
        tmp_path / "w.safetensors", first | {"conv5_3": loud}, without=("fc6", "fc7")
    )
    return config, first


def test_layers_that_the_weights_lack_begin_gently(lacking, tmp_path, capsys):
    config, first = lacking
    mesh = make_mesh(jax.devices()[:1])
    run_training(config, tmp_path / "run", mesh=mesh)
    told = capsys.readouterr().out
    assert "new in the backbone: fc6 times " in told
    assert "Consider --config.optimizer.warmup_steps=500" in told
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["weights"]["new in the backbone"].startswith("fc6 times ")
    trained = load_trained(config, tmp_path / "run", mesh=mesh).variables["params"]["backbone"]
    ratio = np.asarray(trained["fc6"]["kernel"]) / first["fc6"]["kernel"]
    np.testing.assert_array_equal(ratio, ratio[0, 0, 0, 0])
    assert 0 < ratio[0, 0, 0, 0] < 1e-4


def test_processes_begin_with_what_the_first_of_them_has_measured(lacking, shapes, monkeypatch):
    config, first = lacking
    monkeypatch.setattr(first_state, "from_first", lambda own: {"fc6": 0.5, "fc7": 4.0})
    optimizer = experiment.build_optimizer(config, experiment.stand_in_schedule(config))
    source, mesh = experiment.build_source(config, "train"), make_mesh(jax.devices()[:1])
    state, _ = first_state.first_state(config, build_network(config, 3), optimizer, mesh, source)
    for layer, factor in (("fc6", 0.5), ("fc7", 4.0)):
        kernel = state.params["backbone"][layer]["kernel"]
        np.testing.assert_array_equal(kernel, factor * first[layer]["kernel"])
