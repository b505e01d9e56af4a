"""Measures the time from the start of a process to its first prediction and training step.

Each measurement runs in a process of its own: `python -m ssd_jax.benchmark.start CONFIG.json`, with
the options --devices, --classes and --own-data of `ssd-jax benchmark`, prints the seconds as JSON,
or fails.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from time import perf_counter, time

from ml_collections import ConfigDict

from ssd_jax.config import CONFIG_FILE, read_config, save_config
from ssd_jax.config_check import images_together
from ssd_jax.errors import UserError

_STARTED = "SSD_JAX_BENCHMARK_STARTED"


def measure_starts(
    config: ConfigDict,
    *,
    devices: int | None = None,
    classes: int | None = None,
    own_data: bool = False,
) -> dict[str, dict]:
    """Seconds of a start with nothing compiled yet ("cold") and of the next one ("warm").

    Call it before this process opens an accelerator, because only one process can have it.

    Raises:
      UserError: a process has failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / CONFIG_FILE
        save_config(config, path)
        command = [sys.executable, "-m", "ssd_jax.benchmark.start", str(path)]
        for name, value in (("--devices", devices), ("--classes", classes)):
            command += [name, str(value)] if value is not None else []
        command += ["--own-data"] if own_data else []
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/compiled"}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        starts = {}
        for name in ("cold", "warm"):
            child = subprocess.run(
                command,
                env=environment | {_STARTED: repr(time())},
                capture_output=True,
                text=True,
                check=False,
            )
            if child.returncode:
                raise UserError(
                    f"a {name} start ended with exit code {child.returncode}. "
                    f"{child.stderr.strip()[-2000:]}"
                )
            starts[name] = json.loads(child.stdout.splitlines()[-1])
        return starts


def _main() -> int:
    """Prints the seconds as one line of JSON; for a user's mistake a message, and returns 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--classes", type=int)
    parser.add_argument("--own-data", action="store_true")
    options = parser.parse_args()
    try:
        seconds = _seconds(options, began=float(os.environ[_STARTED]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(seconds))
    return 0


def _seconds(options: argparse.Namespace, *, began: float) -> dict[str, float]:
    from ssd_jax.benchmark.machine import choose_devices
    from ssd_jax.benchmark.workload import make_workload, predict_program, train_program

    figures = {"import": time() - began}
    import jax

    config = read_config(options.config)
    mesh = choose_devices(config.batch_size // images_together(config), options.devices)
    work = make_workload(config, mesh, classes=options.classes, own_data=options.own_data)
    program = predict_program(work)
    program.call()
    figures |= {"first_answer": time() - began, "compile_predict": program.compile_seconds}
    start = perf_counter()
    program = train_program(work)
    jax.block_until_ready(program.call())
    return figures | {
        "first_step": perf_counter() - start,
        "compile_train": program.compile_seconds,
    }


if __name__ == "__main__":
    sys.exit(_main())
