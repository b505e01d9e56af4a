"""Manifests: the files of a finished checkpoint, so that damage is found before it is used."""

import json
import os
import pathlib

from ssd_jax.files import file_digest, write_json
from ssd_jax.runs.log import CHECKPOINTS_FOLDER

MANIFEST_FILE = "manifest.json"
# Behind the step of a checkpoint while another one of the same step is written.
REPLACED = ".replaced"
# Orbax changes these two after the manifest is written; no restored value depends on them.
_CHANGED_LATER = ("_CHECKPOINT_METADATA", "commit_success.txt")


def write_manifest(folder: pathlib.Path) -> None:
    """Describes every file of a folder that is complete but does not have its final name yet.

    Returns when everything is on disk. Otherwise a machine that loses power may come up with the
    new name but without the data.
    """
    files = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        _sync(path)
    write_json(folder / MANIFEST_FILE, {"files": files})
    folders = [path for path in folder.rglob("*") if path.is_dir()]
    for path in (folder / MANIFEST_FILE, *folders, folder):
        _sync(path)


def find_damage(folder: pathlib.Path) -> str:
    """The damage of a folder that has a manifest, "" if there is none. Reads all files."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        expected = {
            name: (int(file["bytes"]), file["sha256"]) for name, file in manifest["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST_FILE} cannot be read: {type(error).__name__}: {error}"
    # All sizes first: they show most damage without reading the files.
    for name, (size, _) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (got := path.stat().st_size) != size:
            return f"{name} has {got:,} bytes, expected {size:,}"
    for name, (_, sha256) in expected.items():
        try:
            got = file_digest(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error}"
        if got != sha256:
            return f"the content of {name} has changed"
    return ""


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    left_out = {folder / name for name in (*_CHANGED_LATER, MANIFEST_FILE)}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in left_out)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def has_trained(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint after step 0; that of step 0 holds imported weights."""
    return any(saved_steps(workdir / CHECKPOINTS_FOLDER))


def saved_steps(checkpoints: pathlib.Path) -> list[int]:
    """The steps of the checkpoints with final names, rising; damaged ones have other names.

    One that was being replaced when the process ended counts too: the next start renames it back.
    """
    names = {path.name.removesuffix(REPLACED) for path in checkpoints.glob("[0-9]*")}
    return sorted(int(name) for name in names if name.isdigit())
