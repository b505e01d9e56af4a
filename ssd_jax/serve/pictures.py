"""The images of a request: read within limits and decoded."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ssd_jax.data.decode import decode_image
from ssd_jax.data.sources.image_file import read_header

MULTIPART = "multipart/form-data"
# The media types that an image may be sent with. Its format is known from its first bytes.
PICTURE_TYPES = (
    "image/jpeg",
    "image/png",
    "application/x-image",
    "image/jpg",
    "image/*",
    "application/octet-stream",
)


class Limits(NamedTuple):
    """The limits of the server."""

    bytes: int = 20 * 2**20  # of a request
    pixels: int = 2**26  # of an image, according to its header
    pictures: int = 32  # images of one multipart request
    queue: int = 64  # images in progress: accepted and not answered yet
    memory: int = 2**28  # bytes of all requests that are held at the same time
    connections: int = 512
    header_seconds: float = 10.0  # for the header of a request to arrive
    body_seconds: float = 20.0  # for its body
    idle_seconds: float = 65.0  # between two requests; load balancers allow 60
    answer_seconds: float = 50.0  # from the last byte of a request to its answer
    drain_seconds: float = 27.0  # to answer what was accepted, after SIGTERM


DEFAULT_LIMITS = Limits()


class Decoded(NamedTuple):
    """An image on its canvas; `extent` and `size` as in `types.Batch`."""

    canvas: UInt8[np.ndarray, "S S 3"]
    extent: tuple[int, int]
    size: tuple[int, int]


class Memory:
    """Counts the bytes of request bodies that are held at the same time."""

    def __init__(self, limit: int):
        self._limit = limit
        self._used = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yields `take(count)`, which raises 503 if too much is taken; releases all at the end."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self._used + count > self._limit:
                raise HTTPException(
                    503,
                    "the requests that are being read fill the memory reserved for them. Try "
                    "again.",
                    {"Retry-After": "1"},
                )
            self._used += count
            taken += count

        try:
            yield take
        finally:
            self._used -= taken


async def read_body(request: Request, take: Callable[[int], None], limits: Limits) -> bytes:
    """The body of a request; 413 if it is too long, 408 if it arrives too slowly."""
    chunks, total = [], 0
    declared = request.headers.get("content-length", "0")
    too_long = int(declared) > limits.bytes  # a number: the server refuses anything else
    try:
        async with asyncio.timeout(limits.body_seconds):
            if not too_long:
                async for chunk in request.stream():
                    total += len(chunk)
                    too_long = total > limits.bytes
                    if too_long:
                        break
                    take(len(chunk))
                    chunks.append(chunk)
    except TimeoutError as error:
        raise HTTPException(
            408,
            f"{total:,} bytes of the body arrived in {limits.body_seconds:g} seconds, expected all "
            "of it. Send it faster, or send a smaller image.",
            {"Connection": "close"},
        ) from error
    if too_long:
        raise HTTPException(
            413,
            f"the body has {max(total, int(declared)):,} bytes or more, expected {limits.bytes:,} "
            "at most. Send a smaller image.",
        )
    return b"".join(chunks)


def media_type(request: Request) -> str:
    """The media type of the request, without parameters; 415 if not an image, or compressed."""
    packed = request.headers.get("content-encoding", "identity")
    if packed.strip().lower() != "identity":
        raise HTTPException(
            415,
            f"Content-Encoding: got {packed[:100]!r}, expected none: an image is compressed "
            "already. Send its own bytes without this header.",
            {"Accept-Encoding": "identity"},
        )
    given = request.headers.get("content-type", PICTURE_TYPES[-1])
    name = given.partition(";")[0].strip().lower()
    if name not in (MULTIPART, *PICTURE_TYPES):
        raise HTTPException(
            415,
            f"Content-Type: got {given[:100]!r}, expected {', '.join(PICTURE_TYPES)} or "
            f"{MULTIPART}. Set it, e.g. with -H 'Content-Type: image/jpeg' in curl.",
        )
    return name


def decode(data: bytes, name: str, *, canvas: int, limits: Limits) -> Decoded:
    """An image on a canvas of `canvas` pixels a side.

    Raises:
      DataError: it cannot be decoded, or has too many pixels, which is checked before.
    """
    read_header(data, name, max_pixels=limits.pixels)
    return Decoded(*decode_image(data, name, canvas))
