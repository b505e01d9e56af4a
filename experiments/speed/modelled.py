"""The least time of a training step on an H200: the modelled table of docs/performance.md.

    JAX_PLATFORMS=cpu python experiments/speed/modelled.py CONFIG ... [--config.NAME=VALUE ...]

Traces for half a minute, compiles and executes nothing, and prints one line of JSON per config.
"""

import argparse
import json

import jax
from compiled_for_gpu import traced_step

from ssd_jax import config as configs
from ssd_jax.benchmark.roofline import (
    grouped,
    operations,
    program_kernels,
    roofline_seconds,
    stage_of,
    traffic,
)
from ssd_jax.config_check import check
from ssd_jax.sharding import make_mesh

# Operations and bytes a second, assumed to be reached; the specification has 989e12 and 4.8e12.
H200 = {"peak": 790e12, "bandwidth": 4.3e12}


def row(kernels, images):
    """The figures of a program: per image, per second, and as fractions of the least time."""
    least = roofline_seconds(kernels, **H200)
    bound = [k for k in kernels if k.operations / H200["peak"] > k.bytes / H200["bandwidth"]]
    parts = grouped(kernels, stage_of).items()
    return {
        "gflop_an_image": operations(kernels) / images / 1e9,
        "megabytes_an_image": traffic(kernels) / images / 1e6,
        "images_per_second": images / least,
        "arithmetic_alone": images * H200["peak"] / operations(kernels),
        "bound_by_arithmetic": roofline_seconds(bound, **H200) / least,
        "parts": {stage: roofline_seconds(part, **H200) / least for stage, part in parts},
    }


def main():
    """Prints one JSON object per config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    options, rest = parser.parse_known_args()
    for path in options.configs:
        config = configs.load_config(path)
        configs.override(config, configs.split_assignments(rest))
        check(config)
        step = traced_step(config, make_mesh(jax.devices()[:1]))
        figures = row(program_kernels(step.jaxpr), config.batch_size)
        print(json.dumps({"config": path, **figures}))


if __name__ == "__main__":
    main()
