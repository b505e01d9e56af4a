"""Servers on the loopback interface that can be told to fail: a web server, and a TCP proxy."""

import contextlib
import http.server
import math
import re
import socket
import threading


class WebServer:
    """Serves `files` (path to bytes) with ranges and ETags.

    The next answers end early, after as many bytes as `cuts` say. `ranges` are those asked for.
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        self.with_ranges = self.with_length = self.with_versions = True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def answer(self, request):
        path = request.path.partition("?")[0]
        if path not in self.files:
            request.send_error(403 if "secret" in path else 404)
            return
        content = self.files[path]
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        partly = asked and self.with_ranges
        start = int(re.match(r"bytes=(\d+)-$", asked)[1]) if partly else 0
        request.send_response(206 if partly else 200)
        if partly:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.with_length:
            request.send_header("Content-Length", str(len(content) - start))
        if self.with_versions:
            request.send_header("ETag", f'"{hash(content)}"')
        request.end_headers()
        body = content[start:]
        if self.cuts:
            body = body[: self.cuts.pop(0)]
        with contextlib.suppress(OSError):  # the client only wanted to read the header
            request.wfile.write(body)
        request.close_connection = True

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class CuttingProxy:
    """Passes TCP connections on to a port, and cuts them.

    The next `cuts` connections end when more than `cut_after` bytes came from the server, and all
    of them when `dead_after` bytes have `passed` altogether.
    """

    def __init__(self, port: int):
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.arm()

    def arm(self, *, cuts: int = 0, cut_after: float = 0, dead_after: float = math.inf):
        self.passed, self.cuts, self.cut_after, self.dead_after = 0, cuts, cut_after, dead_after

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._target)
                for pump in (self._up, self._down):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _up(self, client, server):
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 14):
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _down(self, client, server):
        count = 0
        with client, server, contextlib.suppress(OSError):
            while data := server.recv(1 << 14):
                count += len(data)
                if self.cuts and count > self.cut_after:
                    self.cuts -= 1
                    break
                if self.passed + len(data) > self.dead_after:
                    break
                self.passed += len(data)
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
