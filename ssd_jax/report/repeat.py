"""The command that repeats a run, and what it cannot repeat by itself."""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ssd_jax.caches import cache_folder
from ssd_jax.config import CONFIG_FILE


def repeat_command(workdir: pathlib.Path) -> str:
    """For the folder that the run was started in, from which the paths of its data may count."""
    if workdir.is_relative_to(cache_folder()):
        # A run whose folder is a URL lies in the cache meanwhile; one has to fetch the file first.
        return f"ssd-jax train --config {CONFIG_FILE} --workdir NEW_FOLDER"
    config, again = shlex.quote(f"{workdir}/{CONFIG_FILE}"), shlex.quote(f"{workdir}-again")
    return f"ssd-jax train --config {config} --workdir {again}"


def repeat_notes(config: ConfigDict, starts: Sequence[dict[str, Any]]) -> list[str]:
    """What has to be done beside the command for the same outcome, a sentence each."""
    if not starts:
        return []
    first, notes = starts[0], []
    own = {name: each for start in starts for name, each in start.get("own", {}).items() if each}
    notes += [
        f"The {name} was a function of the program that started the run, {each}, which the command "
        "does not know."
        for name, each in own.items()
    ]
    if not config.data.train.root:
        notes.append("The program that started the run gave the images, which the command lacks.")
    if (first["weights"] or {}).get("imported"):
        notes.append(
            "The run began with weights that `ssd-jax weights import` had put into its folder; "
            "import them into the new folder first."
        )
    for start in starts:
        if changes := start.get("changes", {}):
            names = ", ".join(changes)
            notes.append(
                f"From step {start['step']:,} on the run had other settings ({names}), which the "
                "command has from the first step on."
            )
    return notes + _machine_notes(first["environment"])


def _machine_notes(environment: dict[str, Any]) -> list[str]:
    devices, variables = environment["devices"], environment.get("variables", {})
    notes = []
    if devices["platform"] == "cpu" and "JAX_NUM_CPU_DEVICES" not in variables:
        notes.append(
            f"It ran on {devices['count']} devices of a processor; where there are more cores or "
            f"fewer, JAX_NUM_CPU_DEVICES={devices['count'] // devices['processes']} before the "
            "command makes as many in each process. Sums are rounded by the number of devices."
        )
    if variables:
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        notes.append(f"In its environment was {given}.")
    return notes
