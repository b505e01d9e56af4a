"""Several Python processes at a time, as one run on this machine: what multi-process tests use.

outcomes = run_processes(training(2, config_file, workdir), devices=4)
assert [each.returncode for each in outcomes] == [0, 0]
"""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

TESTS = pathlib.Path(__file__).parents[1]
# What an outer cluster or a developer's shell must not tell the processes of a test.
NOT_INHERITED = ("JAX_", "XLA_", "SLURM_", "OMPI_", "PMIX_", "KUBERNETES_")


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def cluster_arguments(count: int) -> list[list[str]]:
    """For each of `count` processes the flags of `ssd-jax train` that make them one run."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        ["--coordinator", coordinator, "--num-processes", str(count), "--process-id", str(index)]
        for index in range(count)
    ]


def training(count: int, config: pathlib.Path, workdir: pathlib.Path, *more: str):
    """The arguments of `count` processes that train one run; one process is no cluster."""
    command = ["-m", "ssd_jax", "train", "--config", str(config), "--workdir", str(workdir), *more]
    return [command + flags for flags in (cluster_arguments(count) if count > 1 else [[]])]


def environment(devices: int, **more: str) -> dict[str, str]:
    """Of a process with so many virtual CPU devices; what a test compiled is compiled no more."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(jax.config.jax_compilation_cache_max_size),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": str(TESTS),
        # A test of several processes waits for its compilations, and for little else.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def start_processes(
    argument_lists: Sequence[Sequence[str]], *, devices: int = 2, **variables: str
) -> list[subprocess.Popen]:
    """Starts `python ARGUMENTS` for each list; `finish` waits for them.

    `variables` are added to the environment of all of them.
    """
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment(devices, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in argument_lists
    ]


def finish(
    processes: Sequence[subprocess.Popen], *, timeout: float = 120
) -> list[subprocess.CompletedProcess]:
    """Waits for all; if one takes longer, all are killed and the test fails with their output."""
    deadline = time.monotonic() + timeout

    def outcome(process):
        try:
            output = process.communicate(timeout=max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, *output)

    with ThreadPoolExecutor(len(processes)) as threads:
        outcomes = list(threads.map(outcome, processes))
    if time.monotonic() > deadline:
        pytest.fail(f"not finished after {timeout} s:\n{told(outcomes)}")
    return outcomes


def wait_until(
    happened: Callable[[], bool], processes: Sequence[subprocess.Popen], *, timeout: float = 240
) -> None:
    """Waits; if a process ends before, the test fails with the output of all."""
    deadline = time.monotonic() + timeout
    while not happened():
        if time.monotonic() > deadline or any(each.poll() is not None for each in processes):
            for process in processes:
                process.kill()
            pytest.fail(f"it did not happen:\n{told(finish(processes))}")
        time.sleep(0.005)


def run_processes(
    argument_lists: Sequence[Sequence[str]],
    *,
    devices: int = 2,
    timeout: float = 120,
    **variables: str,
) -> list[subprocess.CompletedProcess]:
    """`start_processes`, then `finish`: exit codes, stdout and stderr in the order given."""
    return finish(start_processes(argument_lists, devices=devices, **variables), timeout=timeout)


def told(outcomes: Sequence[subprocess.CompletedProcess]) -> str:
    """What the processes wrote, for the message of a failed test."""
    return "\n".join(
        f"--- process {index}: exit code {each.returncode}\n{each.stdout}{each.stderr}"
        for index, each in enumerate(outcomes)
    )
