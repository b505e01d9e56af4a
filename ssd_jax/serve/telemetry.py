"""The server's log, with a JSON line per request, and its metrics for Prometheus."""

import datetime
import json
import logging
import sys
import time
from collections.abc import Collection
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
_BATCHES = (1, 2, 4, 8, 16, 32)
_LOG = logging.getLogger("ssd_jax.serve")


def log_to_stdout() -> None:
    """Sends the lines of `log` to standard output, which cannot fail a request.

    The parser of multipart bodies, whose errors are in the answers, is not to log them as well.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOG.handlers[:] = [handler]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)


def log(event: str, **fields: Any) -> None:
    """One line of JSON."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    _LOG.info("%s", json.dumps({"time": now, "event": event, **fields}))


class Metrics:
    """Everything that `GET /metrics` shows."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "ssd_jax_requests", "Requests.", ["path", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "ssd_jax_request_seconds",
            "Seconds from the header of a request to the end of its response.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.stage_seconds = Histogram(
            "ssd_jax_stage_seconds",
            "Seconds of an image in each stage: decode, queue, predict.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch_pictures = Histogram(
            "ssd_jax_batch_pictures",
            "Images that were computed together with an image, itself included.",
            buckets=_BATCHES,
            registry=self._registry,
        )
        self.in_progress = Gauge(
            "ssd_jax_pictures_in_progress",
            "Images that were accepted and are not answered yet.",
            registry=self._registry,
        )

    def text(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class Telemetry:
    """Counts, times and logs the requests of an application.

    The application may add fields to the line of a request, in the dictionary
    `scope["log_fields"]`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]):
        self._app = app
        self._metrics = metrics
        # Any other path is counted as "other", so that clients cannot create metrics.
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = None  # stays so if a request is given up without a response
        fields = scope["log_fields"] = {}
        start = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            seconds = time.perf_counter() - start
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(seconds)
            if (path, status) != ("/ping", 200):  # sent every few seconds
                log(
                    "request",
                    client=scope["client"] and scope["client"][0],
                    method=scope["method"][:20],
                    path=scope["path"][:200],
                    status=status,
                    seconds=round(seconds, 4),
                    **fields,
                )
