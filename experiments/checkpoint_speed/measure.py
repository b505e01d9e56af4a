"""How long a checkpoint delays the training, compared with `torch.save` of the same arrays.

    python experiments/checkpoint_speed/measure.py FOLDER [--rounds 9]

The arrays are the state of VGG16-SSD512 with 20 classes and its momentum, filled with noise, which
compresses as badly as trained weights. The tasks follow each other in every round, so that other
work on the machine slows all of them alike. FOLDER should be on the disk to be measured; what is
written there is removed. Needs torch.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import torch

from ssd_jax import experiment
from ssd_jax.commands.common import positive
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.network import build_network
from ssd_jax.recipes import recipe_config
from ssd_jax.sharding import make_mesh
from ssd_jax.train.checkpoint import Checkpoints
from ssd_jax.train.state import create_state

CLASSES = tuple(f"class_{index}" for index in range(20))


def full_state():
    """The whole training state on one device."""
    config = recipe_config("paper", "vgg16")
    config.model.image_size = 512
    config.steps = 1000
    network = build_network(config, len(CLASSES))
    noise = np.random.default_rng(0)

    def filled(shape):
        return noise.standard_normal(shape.shape, dtype=np.float32).astype(shape.dtype)

    variables = jax.tree.map(filled, variable_shapes(network.model, config.model.image_size))
    optimizer = experiment.build_optimizer(config, experiment.build_schedule(config, 1000))
    state = create_state(variables, optimizer, make_mesh(jax.devices()[:1]))
    return jax.tree.map(lambda x: jax.device_put(filled(x), x.sharding), state)


def one_round(folder: pathlib.Path, state, step: int) -> dict[str, float]:
    """Seconds of each task."""
    state = state.replace(step=jax.device_put(np.int32(step), state.step.sharding))
    jax.block_until_ready(state)
    seconds = {}

    def timed(task, action):
        start = time.perf_counter()
        action()
        seconds[task] = time.perf_counter() - start

    with Checkpoints(folder / "run", metric="map") as checkpoints:
        timed("stall", lambda: checkpoints.save(state, None, classes=CLASSES))
        timed("durable", checkpoints.wait)
    seconds["durable"] += seconds["stall"]
    arrays = {str(i): torch.from_numpy(np.array(x)) for i, x in enumerate(jax.tree.leaves(state))}
    timed("torch.save", lambda: torch.save(arrays, folder / "state.pt"))

    def restore():
        with Checkpoints(folder / "run", metric="map", read_only=True) as checkpoints:
            chosen = checkpoints.latest_step()
            jax.block_until_ready(checkpoints.restore(chosen, state, classes=CLASSES))

    timed("restore", restore)
    return seconds


def main() -> None:
    """Measures, writes results.jsonl and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rounds", type=positive, default=9)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    state = full_state()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    rounds = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        one_round(folder, state, 1)  # not counted: imports and first use
        for step in range(2, arguments.rounds + 2):
            load = os.getloadavg()[0]
            rounds.append({"load": load} | one_round(folder, state, step))
    results = pathlib.Path(__file__).with_name("results.jsonl")
    with results.open("w", encoding="utf-8") as file:
        for each in rounds:
            file.write(json.dumps({name: round(value, 4) for name, value in each.items()}) + "\n")
    print(f"{size / 1e6:.1f} MB in {len(jax.tree.leaves(state))} arrays, {len(rounds)} rounds")
    for task in rounds[0]:
        values = [each[task] for each in rounds]
        print(
            f"{task:10}  {statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f})"
        )
    ratio = statistics.median(each["stall"] / each["torch.save"] for each in rounds)
    print(f"stall of torch.save: {ratio:.2f}")


if __name__ == "__main__":
    main()
