"""`serve`: one process, one event loop, until SIGTERM."""

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ssd_jax.errors import UserError
from ssd_jax.serve.app import Service
from ssd_jax.serve.detector import ServedDetector
from ssd_jax.serve.pictures import DEFAULT_LIMITS, Limits
from ssd_jax.serve.telemetry import log, log_to_stdout

LARGEST_HEADER = 16 * 2**10  # bytes
# The longest that Python lets a computing thread run while others wait. With the default, a ping,
# which waits ten times, would be slow while another thread parses a hostile body.
SWITCH_SECONDS = 0.0005


def serve(
    detector: ServedDetector,
    listener: socket.socket,
    *,
    batches: Sequence[int],
    limits: Limits = DEFAULT_LIMITS,
    token: str | None = None,
) -> bool:
    """Answers requests until SIGTERM, then finishes the accepted ones and returns.

    SIGINT does the same, and then raises KeyboardInterrupt as usual. Returns whether the engine
    still computes, e.g. compiles: nothing interrupts it, and Python waits for it at its exit.

    `listener` is the result of `listen`. The server is healthy once every batch size in `batches`
    is compiled.

    Raises:
      Exception: the detector cannot be warmed up.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    log_to_stdout()
    service = Service(
        detector, batches=batches, limits=limits, token=token, on_failure=lambda: _stop(server)
    )
    server = uvicorn.Server(
        uvicorn.Config(
            service.app,
            http=_timed_protocol(limits.header_seconds),
            ws="none",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=round(limits.idle_seconds),
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=LARGEST_HEADER,
            timeout_graceful_shutdown=round(limits.drain_seconds),
        )
    )
    host, port = listener.getsockname()[:2]
    about = {"engine": detector.engine, "why": detector.why, "batches": tuple(batches)}
    log("listening", host=host, port=port, **about)
    # uvicorn raises the signal again when all is answered; it must not end the process then.
    before = signal.signal(signal.SIGTERM, lambda number, frame: log("stopped"))
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    if service.failure is not None:
        raise service.failure
    return service.busy


def _stop(server: uvicorn.Server) -> None:
    server.should_exit = True


def listen(host: str, port: int, *, limits: Limits = DEFAULT_LIMITS) -> socket.socket:
    """Opens the port, or any free one for 0; clients that connect before `serve` wait for it.

    Raises:
      UserError: the port is in use.
      OSError: the port cannot be opened for another reason.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise UserError(f"port {port} is in use. Choose another --port.") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
        # Otherwise a client that never reads its answer would hold a connection for ever.
        listener.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * limits.answer_seconds)
        )
    return listener


def _timed_protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 that closes a connection whose next header does not arrive in time.

    uvicorn itself limits only the time between two requests. And when the server stops, the last
    answer on a connection says that it closes; otherwise the client's next request would be lost.
    """

    class TimedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._watch()

        def data_received(self, data):
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc):
            self._forget()
            super().connection_lost(exc)

        def shutdown(self):
            super().shutdown()
            if self.cycle is not None and not self.cycle.response_complete:
                # As if the client had asked for it: then the answer has the same header.
                self.cycle.scope["headers"].append((b"connection", b"close"))

        def _watch(self):
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self._timer is None:
                self._timer = self.loop.call_later(header_seconds, self.transport.abort)

        def _forget(self):
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return TimedProtocol
