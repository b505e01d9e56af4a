"""The record of each start of a run: command, versions, machine, state of the code."""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax

from ssd_jax import __version__
from ssd_jax.config import STARTS_FILE
from ssd_jax.files import json_line, whole_file, write_text
from ssd_jax.hardware import processor

# Of the difference from the commit; a larger one is data rather than code.
MOST_PATCH_BYTES = 1_000_000
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy",
            "opencv-python-headless", "faster-coco-eval", "ml_collections")  # fmt: skip
VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_ENABLE_X64",
             "JAX_DEFAULT_MATMUL_PRECISION", "NVIDIA_TF32_OVERRIDE")  # fmt: skip


def record_start(
    workdir: pathlib.Path,
    *,
    step: int,
    weights: dict[str, Any] | None,
    data: Mapping[str, str],
    images: Mapping[str, str | None] = MappingProxyType({}),
    changes: Mapping[str, tuple[Any, Any]] = MappingProxyType({}),
    own: Mapping[str, str | None] = MappingProxyType({}),
) -> None:
    """Adds a line to the run's list of starts; `step` is where it is resumed, 0 for a new run.

    `weights` says where the initial values came from, `data` has the fingerprint of each split,
    `images` that of the bytes of its images, `changes` the former and the new value of each setting
    that changes from here on. `own` has the names of the "loss" and "augment" that replace those of
    the config.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    record = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "step": step,
        "environment": environment(),
        "code": code_state(pathlib.Path(__file__).parents[1], workdir),
        "weights": weights,
        "data": data,
        "images": {split: each for split, each in images.items() if each},
        "own": dict(own),
        "changes": {name: {"from": was, "to": now} for name, (was, now) in changes.items()},
    }
    lines = map(json_line, [*read_starts(workdir), record])
    # Not appended: after a line that was cut off, this one would be lost too.
    write_text(workdir / STARTS_FILE, "".join(lines))


def read_starts(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The starts of a run, the first one first; a line that was cut off is left out."""
    path = workdir / STARTS_FILE
    if not path.is_file():
        return []
    found = []
    for line in path.read_bytes().split(b"\n"):  # other ends of lines are text
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def data_of_last_start(workdir: pathlib.Path) -> dict[str, str]:
    """The fingerprint of each split at the last start that recorded them; {} if none did."""
    recorded = [start["data"] for start in read_starts(workdir) if start.get("data")]
    return recorded[-1] if recorded else {}


def images_of_last_start(workdir: pathlib.Path) -> dict[str, str]:
    """The last recorded fingerprint of the images' bytes of each split, for its present data."""
    now = data_of_last_start(workdir)
    recorded = {}
    for start in read_starts(workdir):
        for split, fingerprint in start.get("images", {}).items():
            if start["data"][split] == now.get(split):
                recorded[split] = fingerprint
    return recorded


def own_of_last_start(workdir: pathlib.Path) -> dict[str, str | None] | None:
    """The `own` of the last start, {} if it was not recorded yet; None if there was no start."""
    starts = read_starts(workdir)
    return starts[-1].get("own", {}) if starts else None


def command_line(arguments: Sequence[str]) -> str | None:
    """The command as it was typed, None if the package was called from a notebook or the like."""
    program = pathlib.Path(arguments[0] if arguments else "")
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", "ssd_jax", *arguments[1:]])
    if program.name == "ssd-jax":
        return shlex.join(["ssd-jax", *arguments[1:]])
    # A user's script; notebooks and tests are started by an installed one, with an absolute path.
    is_script = program.suffix == ".py" and not program.is_absolute()
    return shlex.join(["python", *arguments]) if is_script else None


def environment() -> dict[str, Any]:
    """Versions and machine, without names of hosts or people.

    `driver` is JAX's description of the platform, on GPUs the CUDA version. `variables` are the
    environment variables that change what is computed.
    """
    device = jax.devices()[0]
    return {
        "ssd_jax": __version__,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cpu_cores": os.cpu_count(),
        "driver": device.client.platform_version,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "devices": {
            "kind": device.device_kind,
            "platform": device.platform,
            "count": jax.device_count(),
            "processes": jax.process_count(),
        },
    }


def code_state(folder: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any] | None:
    """The commit of the package's repository and whether files differ from it; None without git.

    The difference is written to `workdir` for `git apply`, if it is not too large; "patch" is the
    name of the file. Untracked files are not included. An installed package may be inside an
    unrelated repository, which is ignored.
    """
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if None in (tracked, commit, changes):
        return None
    state = {"commit": commit.decode().strip(), "changed": bool(changes)}
    return state | _kept_changes(folder, workdir) if changes else state


def _kept_changes(folder: pathlib.Path, workdir: pathlib.Path) -> dict[str, Any]:
    # Not `git diff`, whose output a user may have configured.
    patch = _git(folder, "diff-index", "--patch", "--binary", "HEAD")
    if patch is None or len(patch) > MOST_PATCH_BYTES:
        size = "of unknown size" if patch is None else f"{len(patch) / 1e6:.1f} MB"
        return {"patch": None, "not_kept": f"{size}; at most {MOST_PATCH_BYTES / 1e6:g} MB are"}
    name = f"code_{hashlib.sha256(patch).hexdigest()[:12]}.patch"
    with whole_file(workdir / name) as part:
        part.write_bytes(patch)
    return {"patch": name}


def _git(folder, *arguments):
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def installed_version(name: str) -> str | None:
    """The version of a package, or None; of this package also when it is not installed."""
    if name == "ssd_jax":
        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
