"""What runs have left in their folders, and two of them compared bit by bit."""

import json

import jax
import numpy as np

from ssd_jax.detector import load_trained
from ssd_jax.runs.log import read_metrics
from ssd_jax.sharding import make_mesh

MACHINE = (
    "time",
    "seconds",
    "images_per_second",
    "data_wait",
    "host_memory_gib",
    "device_memory_gib",
)


def final_variables(config, workdir):
    mesh = make_mesh(jax.devices()[:1])
    return jax.device_get(load_trained(config, workdir, mesh=mesh).variables)


def losses(workdir):
    """The records of metrics.jsonl without what depends on the machine."""
    return [
        {name: value for name, value in record.items() if name not in MACHINE}
        for record in read_metrics(workdir / "metrics.jsonl")
    ]


def steps_on_disk(workdir):
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit())


def assert_same_run(workdir, unbroken, config):
    jax.tree.map(
        np.testing.assert_array_equal,
        final_variables(config, workdir),
        final_variables(config, unbroken),
    )
    assert losses(workdir) == losses(unbroken)
    assert result(workdir) == result(unbroken)


def result(workdir):
    """What report.json says of the outcome."""
    report = json.loads((workdir / "report.json").read_text())
    # How it was made may differ, and so may the settings of how it is computed.
    return {name: value for name, value in report.items() if name not in ("how", "config")}
