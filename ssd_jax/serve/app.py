"""The routes of the server and their responses."""

import asyncio
import contextlib
import hmac
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ssd_jax.answers import normalised, pixels
from ssd_jax.errors import DataError
from ssd_jax.hardware import cores
from ssd_jax.serve.batching import Batcher
from ssd_jax.serve.detector import ServedDetector
from ssd_jax.serve.multipart import split_multipart
from ssd_jax.serve.openapi import openapi_document
from ssd_jax.serve.pictures import (
    DEFAULT_LIMITS,
    MULTIPART,
    Limits,
    Memory,
    decode,
    media_type,
    read_body,
)
from ssd_jax.serve.telemetry import Metrics, Telemetry, log
from ssd_jax.serve.unread import TakeUnread

# nginx's status for a client that went away: it is only logged, nobody receives it.
CLIENT_CLOSED = 499
# RFC 9110, 5.6.6: a quoted value may contain characters that end an unquoted one.
_PARAMETER = re.compile(r';\s*([^\s;,="]+)=("(?:[^"\\]|\\.)*"|[^\s;,"]*)')
# The pages contain all they need, and the browser must not load anything else.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "img-src blob: data:; connect-src 'self'"
    )
}


class Service:
    """A detector as an application: `app` is what an ASGI server runs.

    Clients must send `token`, if it is given. `on_failure` is called if the engine cannot be warmed
    up, and `failure` is then the exception.
    """

    def __init__(
        self,
        detector: ServedDetector,
        *,
        batches: Sequence[int],
        limits: Limits = DEFAULT_LIMITS,
        token: str | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ):
        self.failure: BaseException | None = None
        self._detector = detector
        # So that a request that can never be accepted is refused for good, not with 503.
        self._limits = limits._replace(
            pictures=min(limits.pictures, limits.queue), memory=max(limits.memory, limits.bytes)
        )
        self._token = token
        self._on_failure = on_failure
        self._batcher = Batcher(detector, batches)
        self._batches = tuple(batches)
        self._memory = Memory(self._limits.memory)
        self._decoders = ThreadPoolExecutor(cores(), thread_name_prefix="decode")
        self._in_progress = 0
        self._metrics = Metrics()
        self._openapi = JSONResponse(openapi_document(self._limits, with_token=token is not None))
        self.app = self._build()

    def _build(self) -> ASGIApp:
        routes = [
            Route("/", _page("index.html")),
            Route("/docs", _page("docs.html")),
            Route("/ping", self.ping),
            Route("/invocations", self.invocations, methods=["POST"]),
            Route("/metadata", self.metadata),
            Route("/metrics", self.metrics),
            Route("/execution-parameters", self.execution_parameters),
            Route("/openapi.json", self.openapi),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={
                HTTPException: _refuse,
                ClientDisconnect: _nobody_there,
                Exception: _failed,
            },
        )
        app.router.redirect_slashes = False
        return Telemetry(TakeUnread(app), self._metrics, [route.path for route in routes])

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(self._run())
        yield
        running.cancel()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        try:
            await self._batcher.run()
        except Exception as error:
            self.failure = error
            self._on_failure()

    @property
    def busy(self) -> bool:
        """Whether the engine computes, which nothing interrupts."""
        return self._batcher.busy

    async def ping(self, request: Request) -> Response:
        """Whether every batch size is compiled."""
        self._check_ready()
        return Response()

    async def metadata(self, request: Request) -> Response:
        """The detector that is served, and the limits of requests."""
        self._check_token(request)
        return JSONResponse(
            {
                "classes": self._detector.classes,
                "canvas": self._detector.canvas,
                "engine": self._detector.engine,
                "why": self._detector.why,
                "batches": self._batches,
                "batch_seconds": {str(n): s for n, s in self._batcher.seconds.items()},
                "limits": self._limits._asdict(),
                "model": self._detector.meta,
            }
        )

    async def metrics(self, request: Request) -> Response:
        """Counters and times."""
        self._check_token(request)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def execution_parameters(self, request: Request) -> Response:
        """The settings that a SageMaker batch transform asks for: one image per request.

        SageMaker allows 100 MB at most, both for a request and for all concurrent ones
        (docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html).
        """
        payload = min(100, max(1, self._limits.bytes // 2**20))
        # Enough for a batch that is computed and one that is decoded meanwhile.
        requests = min(2 * max(self._batches), self._limits.queue)
        return JSONResponse(
            {
                "MaxConcurrentTransforms": min(requests, 100 // payload),
                "BatchStrategy": "SINGLE_RECORD",
                "MaxPayloadInMB": payload,
            }
        )

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return self._openapi

    async def invocations(self, request: Request) -> Response:
        """The detections of an image, or of each image of a multipart request."""
        self._check_token(request)
        self._check_ready()
        given = media_type(request)
        form = pixels if _wants_pixels(request) else _normalised_form
        with self._memory.share() as take:
            body = await read_body(request, take, self._limits)
            request.scope["log_fields"]["bytes"] = len(body)
            try:
                async with asyncio.timeout(self._limits.answer_seconds):
                    if given == MULTIPART:
                        content = await self._detect_all(request, body, form)
                    else:
                        with self._accepted(1):
                            content = form(*await self._detect(body, "the image", request))
            except TimeoutError as error:
                raise HTTPException(
                    504,
                    f"no answer within {self._limits.answer_seconds:g} seconds: the server is "
                    "overloaded. Try again later.",
                ) from error
        return JSONResponse(content)

    async def _detect_all(self, request, body, form) -> dict[str, Any]:
        """One result per image, in order; an image that cannot be used has an `error`."""
        loop = asyncio.get_running_loop()
        files = await loop.run_in_executor(
            self._decoders, split_multipart, body, request.headers["content-type"], self._limits
        )

        async def result(file):
            names = {"name": file.name, "field": file.field}
            try:
                return names | form(*await self._detect(file.data, file.name, request))
            except HTTPException as error:
                return names | _error(error.detail)

        with self._accepted(len(files)):
            async with asyncio.TaskGroup() as group:
                results = [group.create_task(result(file)) for file in files]
        return {"results": [each.result() for each in results]}

    async def _detect(self, data, name, request):
        """(detections, (height, width)) of an encoded image."""
        start = time.perf_counter()
        try:
            picture = await asyncio.get_running_loop().run_in_executor(
                self._decoders,
                lambda: decode(data, name, canvas=self._detector.canvas, limits=self._limits),
            )
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        decoded = time.perf_counter() - start
        try:
            computed = await self._batcher.predict(picture.canvas, picture.extent)
        except Exception as error:  # engines raise what they like
            log("failure", error=repr(error), traceback=traceback.format_exception(error))
            raise HTTPException(500, "the engine failed; see the server's log.") from error
        fields = request.scope["log_fields"]
        fields["pictures"] = fields.get("pictures", 0) + 1
        fields["batch"] = computed.batch
        self._metrics.batch_pictures.observe(computed.batch)
        for stage, seconds in (
            ("decode", decoded),
            ("queue", computed.queue_seconds),
            ("predict", computed.predict_seconds),
        ):
            self._metrics.stage_seconds.labels(stage).observe(seconds)
            # The slowest of several images, because they are computed side by side.
            name = f"{stage}_seconds"
            fields[name] = round(max(fields.get(name, 0.0), seconds), 4)
        return computed.detections, picture.size

    @contextlib.contextmanager
    def _accepted(self, count: int):
        """Reserves places for images from decoding to response; 503 if there are none."""
        if self._in_progress + count > self._limits.queue:
            raise HTTPException(
                503,
                f"{self._in_progress} images are waiting, expected {self._limits.queue} at most. "
                "Try again later.",
                {"Retry-After": str(self._batcher.seconds_for(self._in_progress))},
            )
        self._in_progress += count
        self._metrics.in_progress.set(self._in_progress)
        try:
            yield
        finally:
            self._in_progress -= count
            self._metrics.in_progress.set(self._in_progress)

    def _check_ready(self) -> None:
        if not self._batcher.ready:
            raise HTTPException(
                503, "the detector is being compiled. Try again.", {"Retry-After": "1"}
            )

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        # RFC 9110, 11.1 and 11.4: the scheme (case-insensitive), spaces, the token.
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.lstrip(" ").encode("latin-1"), self._token.encode())
        if scheme.lower() != "bearer" or not same:
            raise HTTPException(
                401,
                "expected the header `Authorization: Bearer TOKEN` with this server's token.",
                {"WWW-Authenticate": "Bearer"},
            )


def _normalised_form(found, size):
    return normalised(found)


def _wants_pixels(request: Request) -> bool:
    """`annotation=1` among the parameters of an accepted type; the value may be quoted."""
    accepted = _PARAMETER.findall(request.headers.get("accept", "").lower())
    return any(name == "annotation" and value.strip('"') == "1" for name, value in accepted)


def _page(name: str):
    content = resources.files("ssd_jax.serve").joinpath(name).read_text(encoding="utf-8")
    answer = HTMLResponse(content, headers=_PAGE_HEADERS)

    async def page(request: Request) -> Response:
        return answer

    return page


def _error(reason: str) -> dict[str, str]:
    return {"error": reason}


async def _refuse(request: Request, error: HTTPException) -> Response:
    reason = error.detail
    if error.status_code == 404:
        reason = "there is nothing at this path. /docs lists the paths."
    elif error.status_code == 405:
        reason = f"got {request.method[:20]}, expected {error.headers['Allow']}."
    request.scope["log_fields"]["reason"] = reason
    return JSONResponse(_error(reason), error.status_code, error.headers)


async def _nobody_there(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(_error("the server failed; see its log."), 500)
