"""Web servers and object stores behind one interface: describe an object, list a prefix, read.

HTTP needs no extra packages; `s3://` and `gs://` use fsspec. Endpoint and credentials come from
the environment, as each store's library reads them.
"""

import base64
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import requests

from ssd_jax.data import codes
from ssd_jax.errors import DataError, UserError

SCHEMES = ("s3", "gs", "http", "https")
CHUNK_BYTES = 8 << 20
_CONNECT_READ_SECONDS = (10, 60)
_EXTRAS = {"s3": "pip install 'ssd-jax[s3]'", "gs": "pip install gcsfs"}
# Stores that speak S3 but not its newer checksums send the checksum of the whole object with a
# part of it, so the parts would not verify.
_OPTIONS = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            # s3fs and our own loop already retry; a third loop would only multiply the waiting.
            "retries": {"total_max_attempts": 1},
        },
    },
    "gs": {"use_listings_cache": False},
}


class RemoteObject(NamedTuple):
    """An object as its server describes it; `checksum` is (algorithm, hexadecimal digits).

    A different `version` means different content; "" if the server gives none.
    """

    url: str
    size: int
    version: str
    checksum: tuple[str, str] | None = None


class WebServer:
    """Files of a web server; it has no folders."""

    def describe(self, url: str) -> RemoteObject:
        """Size and validator of a file."""
        # Not HEAD: a URL that was signed for reading is signed for GET only.
        with _get(url, {}) as response:
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise DataError(
                    codes.TRANSFER_FAILED,
                    shown_url(url),
                    "the server does not report the size of the file, so a broken transfer could "
                    "not be noticed",
                    "Download it by other means and give the local path",
                )
            version = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
            return RemoteObject(url, int(length), version)

    def read(self, remote: RemoteObject, offset: int) -> tuple[int, Iterator[bytes]]:
        """The bytes from `offset` on, or from 0 if the server sends no ranges or no versions."""
        resume = offset and remote.version
        response = _get(remote.url, {"Range": f"bytes={offset}-"} if resume else {})
        found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        start = int(found[1]) if response.status_code == 206 and found else 0

        def chunks() -> Iterator[bytes]:
            with response:
                yield from response.raw.stream(1 << 20, decode_content=False)

        return start, chunks()


class Bucket:
    """Objects of an S3 or Google Cloud Storage bucket."""

    def __init__(self, scheme: str):
        try:
            import fsspec

            self._scheme = scheme
            self._files = fsspec.filesystem(scheme, **_OPTIONS[scheme])
        except ImportError as error:
            raise UserError(
                f"{scheme}:// needs a package that is not installed ({error}). "
                f"Install it: {_EXTRAS[scheme]}"
            ) from error

    def describe(self, url: str) -> RemoteObject | None:
        """Size and validator of an object; None for a prefix that holds objects."""
        info = self._files.info(url)
        return None if info["type"] == "directory" else _remote_object(url, info)

    def list(self, url: str) -> list[RemoteObject]:
        """All objects below a prefix, by name."""
        found = self._files.find(url, detail=True)
        return [
            _remote_object(f"{self._scheme}://{path}", info)
            for path, info in sorted(found.items())
            # An empty object whose name ends in a slash represents a folder.
            if not path.endswith("/")
        ]

    def read(self, remote: RemoteObject, offset: int) -> tuple[int, Iterator[bytes]]:
        """The bytes from `offset` on."""
        return offset, self._chunks(remote, offset)

    def _chunks(self, remote: RemoteObject, offset: int) -> Iterator[bytes]:
        for start in range(offset, remote.size, CHUNK_BYTES):
            end = min(start + CHUNK_BYTES, remote.size)
            yield self._files.cat_file(remote.url, start=start, end=end)

    def etag_is_md5(self, remote: RemoteObject) -> bool:
        """Whether an ETag that looks like an MD5 is one; it is not for objects encrypted by KMS.

        Source: Amazon S3 API reference, `Object`, `ETag`.
        """
        if self._scheme != "s3":
            return True
        bucket, key, _ = self._files.split_path(remote.url)
        head = self._files.call_s3("head_object", Bucket=bucket, Key=key)
        return not head.get("ServerSideEncryption", "").startswith("aws:kms")

    def put(self, path: str | os.PathLike, url: str) -> None:
        """Upload a file; the object appears only when all of it has arrived."""
        self._files.put_file(os.fspath(path), url)

    def remove(self, url: str) -> None:
        """Delete an object."""
        self._files.rm_file(url)


def open_store(url: str) -> WebServer | Bucket:
    """The store that serves a URL."""
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise UserError(f"{url!r} is not a URL, expected one of {', '.join(SCHEMES)}://")
    return WebServer() if scheme in ("http", "https") else Bucket(scheme)


def open_to_write(url: str) -> Bucket:
    """The store that serves a URL, if files can be written there."""
    store = open_store(url)
    if not isinstance(store, Bucket):
        raise UserError(f"{shown_url(url)}: cannot be written to, expected s3:// or gs://")
    return store


def split_url(url: str) -> tuple[str, str, list[str]]:
    """Scheme, host or bucket, and the names on the path; bucket keys are not unquoted."""
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise UserError(f"{scheme}://...: this is not a URL ({error}).") from error
        host, path = parts.netloc.rpartition("@")[2], unquote(parts.path)
    else:
        host, _, path = rest.partition("/")
    return scheme, host, [name for name in path.split("/") if name]


def shown_url(url: str) -> str:
    """A URL for messages, without anything that may be a password or a signature."""
    scheme, host, names = split_url(url)
    return f"{scheme}://{'/'.join([host, *names])}"


def _get(url: str, headers: dict[str, str]) -> requests.Response:
    response = requests.get(
        url,
        headers={"Accept-Encoding": "identity", **headers},
        stream=True,
        timeout=_CONNECT_READ_SECONDS,
        hooks={"response": _without_body_of_redirect},
    )
    status, reason = response.status_code, f"{response.status_code} {response.reason}"
    if status in (200, 206):
        return response
    response.close()
    if status in (404, 410):
        raise FileNotFoundError(reason)
    if status in (401, 403):
        raise PermissionError(reason)
    raise OSError(reason)


def _without_body_of_redirect(response: requests.Response, **_: Any) -> None:
    """Otherwise requests reads the body of a redirect, however long it is."""
    if response.is_redirect:
        response.close()
        response._content = b""


def _remote_object(url: str, info: dict) -> RemoteObject:
    """A `RemoteObject` from s3fs's (`ETag`) or gcsfs's (`etag`, `md5Hash` in base64) metadata."""
    version = str(info.get("ETag") or info.get("etag") or "").strip('"')
    md5 = base64.b64decode(info["md5Hash"]).hex() if "md5Hash" in info else version
    # The ETag of an object uploaded in parts is a hash of hashes, then a dash and their number.
    checksum = ("md5", md5) if re.fullmatch("[0-9a-f]{32}", md5) else None
    return RemoteObject(url, int(info["size"]), version, checksum)
