"""Files behind a URL, `s3://`, `gs://` or `https://`: read whole, or staged to a local cache.

A transfer writes to `NAME.VERSION.part`. If it is interrupted it resumes from there, also in
another process. The file gets its final name only when its size agrees, and its checksum if the
store has one.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import BinaryIO, TypeVar

from tqdm import tqdm

from ssd_jax.caches import cache_folder
from ssd_jax.data import codes
from ssd_jax.data.remote import (
    SCHEMES,
    Bucket,
    RemoteObject,
    WebServer,
    open_store,
    open_to_write,
    shown_url,
    split_url,
)
from ssd_jax.errors import DataError, Stopped, UserError
from ssd_jax.files import file_digest
from ssd_jax.locks import lock

# Attempts without a byte of progress, and the first pause between them in seconds; each further
# pause is twice as long.
ATTEMPTS = 5
PAUSE = 0.5
PARALLEL_TRANSFERS = 16
LARGEST_READ = 256 << 20
# File systems allow 255 bytes; the name of a temporary file also has the version.
LONGEST_NAME = 230
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Exceptions of botocore, by name, because it may not be installed.
_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")

Result = TypeVar("Result")


def is_remote(location: str | os.PathLike) -> bool:
    """Whether a location is a URL of one of `SCHEMES`."""
    scheme, separator, _ = os.fspath(location).partition("://")
    return bool(separator) and scheme in SCHEMES


def read_bytes(url: str) -> bytes:
    """The content of a small object, such as an image."""
    store = open_store(url)

    def read() -> bytes:
        remote = _described(store, url)
        if remote.size > LARGEST_READ:
            raise _disagrees(url, f"{remote.size:,} bytes, expected at most {LARGEST_READ:,}")
        content = bytearray()
        with contextlib.closing(store.read(remote, 0)[1]) as chunks:
            for chunk in chunks:
                content += chunk
                if len(content) > remote.size:
                    break
        if len(content) != remote.size:
            raise OSError(f"{len(content)} of {remote.size} bytes arrived")
        return bytes(content)

    return _persistently(read, url)


def list_urls(url: str) -> list[str]:
    """The URLs of all objects below a prefix, sorted by name; for an object, its own URL."""
    store = open_store(url)
    if _persistently(lambda: store.describe(url), url) is not None:
        return [url]
    return [remote.url for remote in _persistently(lambda: _listed(store, url), url)]


def stage(url: str, *, names: Collection[str] | None = None) -> pathlib.Path:
    """A local copy of an object, or of all objects below a prefix; existing files are kept.

    With `names`, only the objects of a prefix that have these names.

    A changed object gets a new path, so the content of a path that was returned never changes.
    """
    store = open_store(url)
    remote = _persistently(lambda: store.describe(url), url)
    if remote is not None:
        path = _place(url, [remote])
        _transfer_all(store, {path: remote})
        return path
    remotes = _persistently(lambda: _listed(store, url), url)
    if names is not None:
        remotes = [each for each in remotes if each.url[len(url.rstrip("/")) + 1 :] in names]
    return download(url, remotes)


def list_objects(url: str) -> list[RemoteObject]:
    """All objects below a prefix, sorted by name; empty if there is no such prefix."""
    store = open_store(url)
    if not isinstance(store, Bucket):
        raise UserError(f"{shown_url(url)}: has no folders to list, expected s3:// or gs://")
    return _persistently(lambda: store.list(url), url)


def download(
    url: str,
    remotes: Sequence[RemoteObject],
    folder: pathlib.Path | None = None,
) -> pathlib.Path:
    """Download objects below a prefix to a folder, by default `stage`'s; returns the folder."""
    folder = folder or _place(url, remotes)
    depth = len(safe_names(url))
    plan = {folder.joinpath(*safe_names(remote.url)[depth:]): remote for remote in remotes}
    folders = {parent for path in plan for parent in path.parents}
    for path in plan:
        if path in folders:
            raise _unsafe(plan[path].url, "it is both an object and a folder of other objects")
    _transfer_all(open_store(url), plan)
    return folder


def fetch(url: str, path: str | os.PathLike, *, size: int, sha256: str) -> pathlib.Path:
    """Download a file whose size and SHA-256 are known; an existing file is only verified."""
    path = pathlib.Path(path)
    if path.exists():
        verify(path, size=size, sha256=sha256)
        return path
    store = open_store(url)
    remote = _persistently(lambda: _described(store, url), url)
    if remote.size != size:
        raise _disagrees(url, f"{remote.size:,} bytes, expected {size:,}")
    remote = remote._replace(checksum=("sha256", sha256))
    _transfer_all(store, {path: remote})
    return path


def verify(path: str | os.PathLike, *, size: int, sha256: str) -> None:
    """Raise a `DataError` if a local file is not the one that was expected."""
    if (got := os.path.getsize(path)) != size:
        raise _disagrees(os.fspath(path), f"{got:,} bytes, expected {size:,}")
    if (got := file_digest(path)) != sha256:
        raise _disagrees(os.fspath(path), f"its sha256 is {got}, expected {sha256}")


def upload(path: str | os.PathLike, url: str) -> None:
    """Upload a file, or all files below a folder, and check their sizes in the store."""
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist, expected a file or a folder to upload")
    store = open_to_write(url)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        target = url.rstrip("/") + f"/{file.relative_to(path).as_posix()}" * (file != path)

        def put(file: pathlib.Path = file, target: str = target) -> None:
            store.put(file, target)
            if store.describe(target).size != file.stat().st_size:
                raise OSError("the stored object has a different size from the file")

        _persistently(put, target)


def _described(store: WebServer | Bucket, url: str) -> RemoteObject:
    remote = store.describe(url)
    if remote is None:
        raise FileNotFoundError("it is a folder, expected an object")
    return remote


def _listed(store: Bucket, url: str) -> list[RemoteObject]:
    if not (remotes := store.list(url)):
        raise FileNotFoundError("the prefix is empty")
    return remotes


def _place(url: str, remotes: Sequence[RemoteObject]) -> pathlib.Path:
    """The path in the cache for an object or a prefix with this content."""
    versions = "\n".join(f"{remote.url} {remote.size} {remote.version}" for remote in remotes)
    digest = hashlib.sha256(versions.encode()).hexdigest()[:12]
    *parents, name = safe_names(url)
    scheme = url.partition("://")[0]
    return cache_folder().joinpath(scheme, *parents, digest, name).absolute()


def safe_names(url: str) -> list[str]:
    """The host or bucket and the names on the path, all safe as file names."""
    _, host, names = split_url(url)
    for name in (host, *names):
        strange = name in ("", ".", "..") or "\0" in name or "\\" in name
        if strange or len(name.encode()) > LONGEST_NAME:
            raise _unsafe(url, f"{name!r} is not a valid file name")
    return [host, *names]


def _transfer_all(store: WebServer | Bucket, plan: dict[pathlib.Path, RemoteObject]) -> None:
    plan = {path: remote for path, remote in plan.items() if not path.exists()}
    if not plan:
        return
    for path in plan:
        path.parent.mkdir(parents=True, exist_ok=True)
    total = sum(remote.size for remote in plan.values())
    parts = [_part(path, remote) for path, remote in plan.items()]
    missing = total - sum(part.stat().st_size for part in parts if part.exists())
    folder = next(iter(plan)).parent
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"{folder}: {missing:,} bytes have to be downloaded, but only {free:,} are free. "
            "Free some space, or set SSD_JAX_CACHE to a folder on another disk."
        )
    bar = tqdm(
        total=total,
        desc=next(iter(plan)).name if len(plan) == 1 else f"{len(plan):,} files",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,
    )
    stopped = threading.Event()

    def advance(count: int) -> None:
        if stopped.is_set():
            raise UserError("the transfer was stopped")
        with bar.get_lock():
            bar.update(count)

    with bar, ThreadPoolExecutor(min(PARALLEL_TRANSFERS, len(plan))) as pool:
        transfers = [
            pool.submit(_transfer, store, remote, path, advance) for path, remote in plan.items()
        ]
        try:
            for transfer in as_completed(transfers):
                transfer.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _part(path: pathlib.Path, remote: RemoteObject) -> pathlib.Path:
    version = hashlib.sha256(f"{remote.size} {remote.version}".encode()).hexdigest()[:12]
    return path.with_name(f"{path.name}.{version}.part")


def _transfer(
    store: WebServer | Bucket,
    remote: RemoteObject,
    path: pathlib.Path,
    advance: Callable[[int], None],
) -> None:
    part = _part(path, remote)
    with part.open("ab") as file:
        # Another process may be staging the same file; after the wait it is already there.
        lock(file, wait=True)
        if path.exists():
            part.unlink(missing_ok=True)
            return
        advance(_length(file))
        _persistently(
            lambda: _receive(store, remote, file, advance),
            remote.url,
            progress=lambda: _length(file),
        )
        os.fsync(file.fileno())
        part.replace(path)


def _receive(
    store: WebServer | Bucket, remote: RemoteObject, file: BinaryIO, advance: Callable[[int], None]
) -> None:
    """Append the missing bytes; return only if the file is complete."""

    def drop_from(start: int) -> None:
        advance(start - _length(file))
        file.truncate(start)

    resumed = _length(file)
    if resumed < remote.size:
        start, chunks = store.read(remote, resumed)
        with contextlib.closing(chunks):
            if start > resumed:
                raise OSError(f"the server left out bytes {resumed:,} to {start:,}")
            drop_from(start)
            for chunk in chunks:
                file.write(chunk)
                advance(len(chunk))
                if _length(file) > remote.size:
                    break
    if (length := _length(file)) < remote.size:
        raise OSError(f"the transfer ended after {length:,} of {remote.size:,} bytes")
    if problem := _difference(store, remote, file):
        drop_from(0)
        # The remains of an earlier transfer may be to blame: try once more from the start.
        raise OSError(problem) if resumed else _disagrees(remote.url, problem)


def _difference(store: WebServer | Bucket, remote: RemoteObject, file: BinaryIO) -> str:
    """What is wrong with a transferred file; empty if nothing is."""
    if (length := _length(file)) > remote.size:
        return f"{length:,} bytes or more, expected {remote.size:,}"
    if remote.checksum is not None:
        algorithm, expected = remote.checksum
        if (got := file_digest(file.name, algorithm)) == expected:
            return ""
        if algorithm == "sha256" or store.etag_is_md5(remote):
            return f"its {algorithm} is {got}, expected {expected}"
    now = _described(store, remote.url)
    unchanged = (now.size, now.version) == (remote.size, remote.version)
    return "" if unchanged else "it changed while it was read"


def _length(file: BinaryIO) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size


def _persistently(
    action: Callable[[], Result], url: str, *, progress: Callable[[], int] = lambda: 0
) -> Result:
    """The result of an action that may fail for a while; tries that make progress do not count."""
    failures, reached = 0, progress()
    while True:
        try:
            return action()
        except (UserError, Stopped):
            raise
        except FileNotFoundError as error:
            raise DataError(
                codes.OBJECT_MISSING,
                shown_url(url),
                f"there is no such object, prefix or bucket ({error})",
                "Correct the address",
            ) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                raise
            if isinstance(error, PermissionError) or type(error).__name__ in _WITHOUT_CREDENTIALS:
                raise _refused(url, error) from error
            failures = 0 if progress() > reached else failures + 1
            reached = progress()
            if failures == ATTEMPTS:
                raise DataError(
                    codes.TRANSFER_FAILED,
                    shown_url(url),
                    f"{ATTEMPTS} attempts failed, the last with {type(error).__name__}: {error}",
                    "Check the address, the endpoint and the network, and run it again: "
                    "it resumes where it stopped",
                ) from error
            time.sleep(PAUSE * 2**failures)


def _refused(url: str, error: Exception) -> DataError:
    return DataError(
        codes.ACCESS_REFUSED,
        shown_url(url),
        f"access was refused ({error})",
        "Check the credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and "
        "AWS_ENDPOINT_URL, for S3 (FSSPEC_S3_ANON=true reads public buckets), "
        "GOOGLE_APPLICATION_CREDENTIALS for gs://, ~/.netrc for https://",
    )


def _disagrees(where: str, problem: str) -> DataError:
    return DataError(
        codes.CONTENT_DISAGREES,
        shown_url(where) if is_remote(where) else where,
        problem,
        "Delete the local copy, if any, and try again, or ask the provider of the file",
    )


def _unsafe(url: str, problem: str) -> DataError:
    return DataError(
        codes.NAME_UNSAFE, shown_url(url), problem, "Rename the object, or copy it by other means"
    )
