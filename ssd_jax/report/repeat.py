"""The command that repeats a run, and notes on what it does not cover."""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ssd_jax.caches import is_cached
from ssd_jax.config import CONFIG_FILE
from ssd_jax.literals import shell_path


def repeat_command(workdir: pathlib.Path) -> str:
    """The command, for the folder in which the run was started (data paths may be relative)."""
    if is_cached(workdir):
        # The folder of the run is a URL, and this its cached copy; the user must fetch the config.
        return f"ssd-jax train --config {CONFIG_FILE} --workdir NEW_FOLDER"
    if workdir.name in ("", ".."):  # a name is needed for the other folder
        workdir = workdir.resolve()
    config, again = shell_path(f"{workdir}/{CONFIG_FILE}"), shell_path(f"{workdir}-again")
    return f"ssd-jax train --config {config} --workdir {again}"


def repeat_notes(config: ConfigDict, starts: Sequence[dict[str, Any]]) -> list[str]:
    """What must be done besides the command to get the same result, one sentence each."""
    if not starts:
        return []
    first, notes = starts[0], []
    own = {name: each for start in starts for name, each in start.get("own", {}).items() if each}
    notes += [
        f"The {name} was a function of the program that started the run, {each}; the command "
        "does not use it."
        for name, each in own.items()
    ]
    if not config.data.train.root:
        notes.append(
            "The images came from the program that started the run; the command does not have them."
        )
    if (first["weights"] or {}).get("imported"):
        notes.append(
            "The run started with weights that `ssd-jax weights import` had written to its folder; "
            "import them into the new folder first."
        )
    for start in starts:
        if changes := start.get("changes", {}):
            names = ", ".join(changes)
            notes.append(
                f"From step {start['step']:,} on the run had other settings ({names}); the command "
                "uses them from the first step."
            )
    return notes + _machine_notes(first["environment"])


def _machine_notes(environment: dict[str, Any]) -> list[str]:
    devices, variables = environment["devices"], environment.get("variables", {})
    notes = []
    if devices["platform"] == "cpu" and "JAX_NUM_CPU_DEVICES" not in variables:
        notes.append(
            f"It ran on {devices['count']} CPU devices. On a machine with another number of cores, "
            f"set JAX_NUM_CPU_DEVICES={devices['count'] // devices['processes']} before the "
            "command to get as many in each process, because the number of devices affects how "
            "sums are rounded."
        )
    if variables:
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        notes.append(f"These environment variables were set: {given}.")
    return notes
