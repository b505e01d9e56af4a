"""One small run on any number of processes and devices, and what came out of it."""

import itertools
import json
import pathlib
import shutil
from typing import NamedTuple

import jax
import numpy as np
from processes import run_processes, told, training
from tiny import tiny_config

from ssd_jax.config import read_config, save_config
from ssd_jax.detector import load_trained
from ssd_jax.runs.log import read_metrics
from ssd_jax.sharding import make_mesh

STEPS = 20
SAVED = 10
# Trains, and prints the names of each batch of its own.
LOGGED = """
import json, sys
from ssd_jax import cli
from ssd_jax.runs import training
batches = training.mesh_batches
def logged(*arguments, **words):
    for names, batch in batches(*arguments, **words):
        print(json.dumps({"names": list(names)}), flush=True)
        yield names, batch
training.mesh_batches = logged
sys.exit(cli.main(sys.argv[1:]))
"""


class Trained(NamedTuple):
    """The outcome of a run: names of each global batch, and the last variables as one vector."""

    workdir: pathlib.Path
    batches: list[list[str]]
    variables: np.ndarray


def config_of(shapes, **changes):
    """A run in which a rounding error stays one.

    The rate is small against the curvature of the loss. All negatives count: the hardest of them
    would change places. No statistics are taken over single pixels, where BatchNorm divides by the
    difference of nearly equal numbers.
    """
    words = {
        "steps": STEPS,
        "model__backbone": "small",
        "model__width": 0.1,
        "model__batch_norm": "none",
        "loss__negatives_per_positive": 1000,
        "optimizer__learning_rate": 1e-5,
        "augment__distort__probability": 0.0,  # as the crop a part that takes long to compile
        "augment__expand__probability": 0.0,
        "augment__crop__min_ious": (),
        "checkpoint__every_steps": SAVED,
        "evaluate__every_steps": None,
        "seed": 3,
    }
    return tiny_config(shapes, **words | changes)


def train_on(processes: int, devices: int, config, workdir: pathlib.Path) -> Trained:
    """Trains in so many processes of so many devices each; goes on with what `workdir` holds."""
    workdir.mkdir(exist_ok=True)
    file = workdir.with_suffix(".json")
    save_config(config, file)
    commands = [["-c", LOGGED, *arguments[2:]] for arguments in training(processes, file, workdir)]
    outcomes = run_processes(commands, devices=devices, timeout=1500)
    assert {each.returncode for each in outcomes} == {0}, told(outcomes)
    return collect(workdir, [each.stdout for each in outcomes])


def collect(workdir: pathlib.Path, outputs) -> Trained:
    """What the processes of a run have left and told."""
    shares = [
        [json.loads(line)["names"] for line in text.splitlines() if line.startswith('{"names"')]
        for text in outputs
    ]
    batches = [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
    return Trained(workdir, batches, variables_of(workdir, "last"))


def variables_of(workdir: pathlib.Path, step: str) -> np.ndarray:
    """All variables of a checkpoint, read on one device."""
    mesh = make_mesh(jax.devices()[:1])
    config = read_config(workdir / "config.json")
    variables = load_trained(config, workdir, mesh=mesh, step=step).variables
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(variables)])


def stopped(trained: Trained, workdir: pathlib.Path) -> pathlib.Path:
    """A copy of a run as it stood at step SAVED."""
    shutil.copytree(trained.workdir / f"checkpoints/{SAVED}", workdir / f"checkpoints/{SAVED}")
    shutil.copy(trained.workdir / "config.json", workdir)
    shutil.copy(trained.workdir / "metrics.jsonl", workdir)
    return workdir


def assert_same_beginning(one: Trained, other: Trained) -> None:
    """The losses and gradients of five steps.

    BatchNorm over a few single pixels, as in the coarsest maps here, makes 2e-5 of a rounding
    error of 1e-7; statistics or a normaliser of other images would change them by per cents.
    """
    for name in ("class_loss", "box_loss", "gradient_norm"):
        first, second = (
            [record[name] for record in read_metrics(each.workdir / "metrics.jsonl")[:5]]
            for each in (one, other)
        )
        np.testing.assert_allclose(first, second, rtol=2e-4)


def assert_agree(one: Trained, other: Trained) -> None:
    """The same batches, and the same variables but for the order in which float32 was summed.

    A sum of n terms in another order differs by about sqrt(n) half units in the last place: of the
    thousands of terms of a gradient here that is some 1e-6 of it, in each step in another
    direction. So the variables may differ by 1e-5 of the way that they have gone. Another image,
    augmentation or normaliser in one step of the twenty changes the way by some per cent.
    """
    assert one.batches[-len(other.batches) :] == other.batches
    begin = variables_of(one.workdir, str(SAVED))
    way = np.linalg.norm(one.variables - begin)
    distance = np.linalg.norm(one.variables - other.variables)
    assert way > 0
    assert distance < 1e-5 * way, distance / way
