"""The folder of a run in an object store: a local copy, uploaded in the background.

A checkpoint is uploaded with its manifest last, and removed with its manifest first. A checkpoint
without a manifest in the store is the rest of an interrupted transfer, and never used.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence

import jax

from ssd_jax.caches import cache_folder
from ssd_jax.cluster import together
from ssd_jax.data.remote import RemoteObject, open_store, shown_url, split_url
from ssd_jax.data.storage import download, is_remote, list_objects, upload
from ssd_jax.errors import UserError
from ssd_jax.locks import only_training
from ssd_jax.runs.log import CHECKPOINTS_FOLDER
from ssd_jax.train.checkpoint_manifest import MANIFEST_FILE

# Seconds between two uploads of changed files. Files that grow are sent whole each time.
PERIOD = 30.0


@contextlib.contextmanager
def workdir_to_write(location: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder to train in: `location` itself, or a local copy of the files at its URL.

    The copy is in the cache folder; its changes are uploaded meanwhile and at the end. In a run of
    several processes all of them must call this.

    Raises:
      UserError: `location` is a file, the store cannot be read, or not everything could be uploaded
        at the end.
    """
    if not is_remote(location):
        if os.path.isfile(location):
            raise UserError(f"{location} is a file. Give a folder as --workdir.")
        yield pathlib.Path(location)
        return
    url = str(location).rstrip("/")
    _, host, names = split_url(url)
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    folder = cache_folder() / "runs" / f"{[host, *names][-1]}-{digest}"
    with contextlib.ExitStack() as stack:
        with together():
            if jax.process_index() == 0:
                # Locked in a folder of its own, because the other one is replaced by `_pull`.
                beside = folder.with_name(f"{folder.name}.held")
                beside.mkdir(parents=True, exist_ok=True)
                stack.enter_context(only_training(beside, shown_url(url)))
                stack.enter_context(_Mirror(folder, url, pulled=_pull(url, folder)))
        yield folder
        # The other processes wait for the upload: JAX ends all of them if one leaves minutes later.
        # They do not wait if the run was stopped, because perhaps only one of them was.
        with together():
            stack.pop_all().close()


def workdir_to_read(location: str | pathlib.Path, *, checkpoints: bool = True) -> pathlib.Path:
    """The folder of a run: `location` itself, or a copy of the files that are at its URL now.

    Without `checkpoints`, which are most of the bytes, the copy has only the other files.
    """
    if not is_remote(location):
        return pathlib.Path(location)
    url = str(location).rstrip("/")
    remotes = _whole(url, list_objects(url))
    if not remotes:
        raise UserError(f"{shown_url(url)}: there is nothing there. Give the --workdir of a run.")
    if not checkpoints:
        remotes = [each for each in remotes if not _step_of(_name(url, each))]
    return download(url, remotes)


class _Mirror:
    """Uploads the changes in a folder, from entering the context until leaving it."""

    def __init__(self, folder: pathlib.Path, url: str, *, pulled: bool):
        self._folder = folder
        self._url = url
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)
        # What the store has: time and size of each file when it was sent, and each manifest.
        self._files: dict[str, tuple[int, int]] = {}
        self._steps: dict[str, bytes] = {}
        if pulled:
            self._files = {name: _version(path) for name, path in _small_files(folder).items()}
            self._steps = _manifests(folder)
        # Interrupted uploads included; they are removed like checkpoints that are no longer kept.
        self._remote_steps = {
            step for each in list_objects(url) if (step := _step_of(_name(url, each)))
        }

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        self._ended.set()
        self._thread.join()
        try:
            self._upload()
        except Exception as error:
            message = (
                f"{shown_url(self._url)}: not everything could be uploaded ({error}). The complete "
                f"run is in {self._folder}; the same command on this machine continues the upload."
            )
            if kind is None:
                raise UserError(message) from error
            _warn(message)

    def _follow(self) -> None:
        last_warning = ""
        while not self._ended.wait(PERIOD):
            try:
                self._upload()
                last_warning = ""
            except Exception as error:  # A failure of the store must not end the run.
                if str(error) != last_warning:
                    _warn(f"{shown_url(self._url)}: an upload failed and is tried again: {error}")
                last_warning = str(error)

    def _upload(self) -> None:
        """Brings the store up to date with the folder."""
        # Read first, so that the store never has a checkpoint without the metrics of its steps.
        manifests = _manifests(self._folder)
        small = _small_files(self._folder)
        with tempfile.TemporaryDirectory() as scratch:
            for name, path in small.items():
                version = _version(path)
                if self._files.get(name) != version:
                    # A copy, because it may grow while it is sent.
                    upload(shutil.copyfile(path, f"{scratch}/file"), f"{self._url}/{name}")
                    self._files[name] = version
                    _sent(self._folder).touch()
        for step, manifest in sorted(manifests.items(), key=lambda item: int(item[0])):
            if self._steps.get(step) != manifest:
                self._upload_step(step, manifest)
        for step in self._remote_steps - manifests.keys():
            self._remove_step(step)
        # Last, because it may fail where uploads do not.
        for name in self._files.keys() - small.keys():
            with contextlib.suppress(FileNotFoundError):
                open_store(self._url).remove(f"{self._url}/{name}")
            del self._files[name]

    def _upload_step(self, step: str, manifest: bytes) -> None:
        folder = self._folder / CHECKPOINTS_FOLDER / step
        if step in self._remote_steps:
            self._remove_step(step)
        self._remote_steps.add(step)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        files.sort(key=lambda path: path == folder / MANIFEST_FILE)
        try:
            for path in files:
                upload(path, f"{self._url}/{path.relative_to(self._folder).as_posix()}")
                _sent(self._folder).touch()
        except (UserError, OSError):
            if not _is(manifest, folder):
                return  # The run no longer keeps it.
            raise
        if _is(manifest, folder):
            self._steps[step] = manifest

    def _remove_step(self, step: str) -> None:
        self._steps.pop(step, None)
        remotes = list_objects(f"{self._url}/{CHECKPOINTS_FOLDER}/{step}")
        store = open_store(self._url)
        for remote in sorted(remotes, key=lambda each: not each.url.endswith(f"/{MANIFEST_FILE}")):
            store.remove(remote.url)
        self._remote_steps.discard(step)


def _pull(url: str, folder: pathlib.Path) -> bool:
    """Replaces the folder by the store's copy unless the store is behind; whether it did so."""
    remotes = _whole(url, list_objects(url))
    newest = max((int(_step_of(_name(url, each)) or -1) for each in remotes), default=-1)
    # An empty store was emptied on purpose only if it had something of this run before.
    behind = remotes or not _sent(folder).exists()
    if behind and max(map(int, _manifests(folder)), default=-1) > newest:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    _sent(folder).unlink(missing_ok=True)
    folder.mkdir()
    download(url, remotes, folder)
    return True


def _sent(folder: pathlib.Path) -> pathlib.Path:
    """The file that marks that the store had something of this run."""
    return folder.with_name(f"{folder.name}.sent")


def _whole(url: str, remotes: Sequence[RemoteObject]) -> list[RemoteObject]:
    """The objects without those of checkpoints that have no manifest."""
    names = {_name(url, each) for each in remotes}
    return [
        each
        for each in remotes
        if not (step := _step_of(_name(url, each)))
        or f"{CHECKPOINTS_FOLDER}/{step}/{MANIFEST_FILE}" in names
    ]


def _name(url: str, remote: RemoteObject) -> str:
    return remote.url.removeprefix(f"{url}/")


def _step_of(name: str) -> str | None:
    """The step that a file of this name belongs to, if it is one of a checkpoint."""
    first, _, rest = name.partition("/")
    step, separator, _ = rest.partition("/")
    return step if first == CHECKPOINTS_FOLDER and separator and step.isdigit() else None


def _manifests(folder: pathlib.Path) -> dict[str, bytes]:
    """The manifest of every finished checkpoint, by step."""
    found = {}
    for path in folder.glob(f"{CHECKPOINTS_FOLDER}/[0-9]*/{MANIFEST_FILE}"):
        with contextlib.suppress(FileNotFoundError):  # The run no longer keeps it.
            found[path.parent.name] = path.read_bytes()
    return {step: manifest for step, manifest in found.items() if step.isdigit()}


def _is(manifest: bytes, folder: pathlib.Path) -> bool:
    path = folder / MANIFEST_FILE
    return path.is_file() and path.read_bytes() == manifest


def _small_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """All files except checkpoints and unfinished files, whose names start with a dot."""
    paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in sorted(paths.items())
        if name.parts[0] != CHECKPOINTS_FOLDER and not path.name.startswith(".")
    }


def _version(path: pathlib.Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
