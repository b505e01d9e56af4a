"""The pictures of a request: read within limits, decoded."""

import asyncio
import contextlib
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ssd_jax.data.decode import decode_image

MULTIPART = "multipart/form-data"
# What a picture may be called. What it is, its first bytes tell.
PICTURE_TYPES = (
    "image/jpeg",
    "image/png",
    "application/x-image",
    "image/jpg",
    "image/*",
    "application/octet-stream",
)


class Limits(NamedTuple):
    """What the server takes on at most."""

    bytes: int = 20 * 2**20  # of a request
    pixels: int = 2**26  # of a picture, as its header tells them
    pictures: int = 32  # of one multipart request
    queue: int = 64  # pictures that were accepted and are not answered
    memory: int = 2**28  # bytes of all requests that are held at the same time
    connections: int = 512
    header_seconds: float = 10.0  # for the header of a request to arrive
    body_seconds: float = 20.0  # for its body
    idle_seconds: float = 65.0  # between two requests; load balancers allow 60
    answer_seconds: float = 50.0  # from the last byte of a request to its answer
    drain_seconds: float = 27.0  # to answer what was accepted, after SIGTERM


DEFAULT_LIMITS = Limits()


class Decoded(NamedTuple):
    """A picture on its canvas; `extent` and `size` as in `types.Batch`."""

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
        """Gives `take(count)`, which raises 503 when there is no more; all is given back after."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self._used + count > self._limit:
                raise HTTPException(
                    503,
                    "the requests that are being read fill the memory set aside for them. Try "
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
    """The body of a request; 413 if it is too long, 408 if it comes too slowly."""
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
            f"{total:,} bytes of the body came in {limits.body_seconds:g} seconds, expected all "
            "of it. Send it faster, or a smaller picture.",
            {"Connection": "close"},
        ) from error
    if too_long:
        raise HTTPException(
            413,
            f"the body has {max(total, int(declared)):,} bytes or more, expected {limits.bytes:,} "
            "at most. Send a smaller picture.",
        )
    return b"".join(chunks)


def media_type(request: Request) -> str:
    """What the request says it sends, without parameters; 415 if it is no picture, or packed."""
    packed = request.headers.get("content-encoding", "identity")
    if packed.strip().lower() != "identity":
        raise HTTPException(
            415,
            f"Content-Encoding: got {packed[:100]!r}, expected none: a picture is packed already. "
            "Send its own bytes without this header.",
            {"Accept-Encoding": "identity"},
        )
    given = request.headers.get("content-type", PICTURE_TYPES[-1])
    name = given.partition(";")[0].strip().lower()
    if name not in (MULTIPART, *PICTURE_TYPES):
        raise HTTPException(
            415,
            f"Content-Type: got {given[:100]!r}, expected {', '.join(PICTURE_TYPES)} or "
            f"{MULTIPART}. Name it, as curl does with -H 'Content-Type: image/jpeg'.",
        )
    return name


def decode(data: bytes, name: str, *, canvas: int, limits: Limits) -> Decoded:
    """A picture on a canvas of `canvas` pixels a side.

    Raises:
      DataError: it cannot be decoded.
      HTTPException: 400, it has too many pixels, which is known before they take memory.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            got = f"{image.width:,} x {image.height:,}"
            too_large = image.width * image.height > limits.pixels
    except Image.DecompressionBombError:
        got, too_large = "too many", True
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise HTTPException(
            400,
            f"{name}: {len(data):,} bytes that start with {data[:4]!r}, expected a whole JPEG or "
            "PNG file.",
        ) from error
    if too_large:
        raise HTTPException(
            400,
            f"{name}: {got} pixels, expected {limits.pixels:,} at most. Scale the picture down.",
        )
    return Decoded(*decode_image(data, name, canvas))
