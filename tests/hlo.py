"""Reads what a compiled program sends between devices."""

import re

import jax
import numpy as np

BYTES = {"pred": 1, "u8": 1, "bf16": 2, "f32": 4, "s32": 4, "u32": 4}
# Compiling is most of the time. Without these the collectives are the same, and it takes longer.
# JAX 0.12 has no longer the second.
QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):
    QUICK["xla_cpu_use_fusion_emitters"] = False


def collectives(text):
    """(kind, bytes of its results) of each collective, in the order of the program."""
    found = re.findall(
        r"= (\(.*?\)|\S+) "
        r"((?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?)\(",
        text,
    )
    return [
        (
            kind,
            sum(
                BYTES[dtype] * int(np.prod([int(side) for side in shape.split(",") if side]))
                for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results)
            ),
        )
        for results, kind in found
    ]
