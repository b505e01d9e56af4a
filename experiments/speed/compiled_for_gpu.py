"""Compiles a training step for an H200 on a machine that has none, and describes the program.

    pip install jax-cuda12-plugin jax-cuda12-pjrt         # of the version of jaxlib
    JAX_PLATFORMS=cpu python experiments/speed/compiled_for_gpu.py CONFIG [--devices N] [--rows N]
        [--config.batch_size=64] [--config.model.dtype=bfloat16]

Compiles for minutes, executes nothing, and prints as JSON the memory that XLA has planned, the
bytes that the kernels read and write, the kernels that move the most bytes, and the number of
launches, those of a loop once per round. A loop whose rounds depend on data counts as one round,
and its condition as launched once more than the rounds. The bytes are those of arguments and
results, each once: caches are not considered, nor data that a kernel reads twice. Without a GPU,
XLA cannot choose kernels by trying them, and no times can be measured.
"""

import argparse
import json
import pathlib
import re
import sys
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from ssd_jax import config as configs
from ssd_jax import experiment
from ssd_jax.config_check import check
from ssd_jax.network import build_network
from ssd_jax.sharding import BATCH_AXIS
from ssd_jax.train.compiled import batch_shapes, step_memory, trace_step

H200 = pathlib.Path(__file__).with_name("h200.txtpb")
CLASSES, OBJECTS = 20, 42
_BITS = {"pred": 8, "bf16": 16}  # of other types the number is in the name
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
_KERNEL = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z-]+)\((.*)")
_STAGE = re.compile(r'op_name="([^"]*)"')
_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
_BODY = re.compile(r"body=%?([\w.-]+)")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# They only name existing buffers.
_FREE = {"get-tuple-element", "parameter", "tuple", "bitcast", "constant"}


class Kernel(NamedTuple):
    """A kernel of the compiled program, and the bytes of its results and arguments."""

    name: str
    operation: str
    stage: str
    written: int
    read: int


def mesh_without_devices(count: int) -> jax.sharding.Mesh:
    """A mesh of H200s that are not present; programs compiled for it cannot run."""
    devices = topologies.get_topology_desc(
        platform="cuda", target_config=H200.read_text(), topology=f"1x1x{count}"
    ).devices
    return jax.sharding.Mesh(np.array(devices), (BATCH_AXIS,))


class Loop(NamedTuple):
    """A loop of a compiled program; `rounds` is None if they depend on data.

    Then each round asks the condition first, and `launches_to_end` ask it for the last time.
    """

    stage: str
    rounds: int | None
    launches_a_round: int
    launches_to_end: int = 0

    @property
    def launches(self) -> int:
        """The launches of all rounds; of one round if the rounds depend on data."""
        rounds = 1 if self.rounds is None else self.rounds
        return rounds * self.launches_a_round + self.launches_to_end


def computations(program: str) -> dict[str, list[str]]:
    """The lines of each computation of a compiled program; the entry's are also under ""."""
    found: dict[str, list[str]] = {}
    for line in program.splitlines():
        if head := _HEAD.match(line):
            lines = found[head[2]] = []
            if head[1]:
                found[""] = lines
        elif found and line.startswith("  "):
            lines.append(line)
    return found


def kernels_of(lines: list[str]) -> list[Kernel]:
    """Those of a computation of a compiled program."""
    sizes: dict[str, int] = {}
    kernels = []
    for line in lines:
        if not (found := _KERNEL.match(line)):
            continue
        name, shape, operation, rest = found.groups()
        sizes[name] = bytes_of(shape)
        if operation not in _FREE:
            arguments = re.findall(r"%([\w.-]+)", rest.partition("), ")[0])
            read = sum(sizes.get(argument, 0) for argument in arguments)
            kernels.append(Kernel(name, operation, _stage(line), sizes[name], read))
    return kernels


def loops_of(found: dict[str, list[str]]) -> list[Loop]:
    """Those of the entry computation; none of ours has another inside."""
    return [_loop(line, found) for line in found[""] if _BODY.search(line)]


def _loop(line: str, found: dict[str, list[str]]) -> Loop:
    body = len(kernels_of(found[_BODY.search(line)[1]]))
    if rounds := _ROUNDS.search(line):
        return Loop(_stage(line), int(rounds[1]), body)
    condition = len(kernels_of(found[_CONDITION.search(line)[1]]))
    return Loop(_stage(line), None, body + condition, condition)


def _stage(line: str) -> str:
    stage = _STAGE.search(line)
    return stage[1] if stage else ""


def bytes_of(shape: str) -> int:
    """The bytes of all arrays in the text of a shape, e.g. `(bf16[64,512]{1,0}, s32[])`."""
    total = 0
    for kind, sides in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int(re.sub(r"\D", "", kind))
        total += int(np.prod([int(side) for side in sides.split(",") if side])) * bits // 8
    return total


def traced_step(config, mesh):
    """The training step of a config, not yet compiled."""
    network = build_network(config, CLASSES)
    schedule = experiment.stand_in_schedule(config)
    optimizer = experiment.build_optimizer(config, schedule)
    step = experiment.build_step(config, network, schedule, optimizer, mesh)
    state = experiment.build_state_shapes(config, network, optimizer, mesh)
    batch = batch_shapes(
        config.batch_size, canvas=config.data.canvas, max_objects=OBJECTS, mesh=mesh
    )
    return trace_step(step, state, batch, mesh)


def main():
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--devices", type=int, default=1, metavar="N")
    parser.add_argument("--rows", type=int, default=12, metavar="N", help="kernels to print")
    options, rest = parser.parse_known_args()
    config = configs.load_config(options.config)
    configs.override(config, configs.split_assignments(rest))
    check(config)
    traced = traced_step(config, mesh_without_devices(options.devices))
    compiled = traced.lower(lowering_platforms=("cuda",)).compile()
    found = computations(compiled.as_text())
    kernels, loops = kernels_of(found[""]), loops_of(found)
    launches = len(kernels) - len(loops) + sum(loop.launches for loop in loops)
    moved = sorted(kernels, key=lambda kernel: -kernel.written - kernel.read)
    result = {
        "config": options.config,
        "batch_size": config.batch_size,
        "dtype": config.model.dtype,
        "jax": jax.__version__,
        "memory_gib": {k: v / 2**30 for k, v in step_memory(compiled)._asdict().items()},
        "kernels": len(kernels),
        "launches": launches,
        "loops": [loop._asdict() for loop in loops],
        "gigabytes": sum(kernel.written + kernel.read for kernel in kernels) / 1e9,
        "most": [kernel._asdict() for kernel in moved[: options.rows]],
    }
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
