"""Good, bad and slow clients of a server at once."""

import collections
import contextlib
import http.client
import json
import multiprocessing
import random
import socket
import statistics
import threading
import time
import zlib

import cv2
import numpy as np

CLIENTS = 8
SLOW = 16
JPEG = {"Content-Type": "image/jpeg"}
PART_OF_A_REQUEST = (
    b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"
    b"Content-Length: 1000000\r\n\r\n"
)


def ask(connection, method, path, body=None, headers=None):
    """(status, content) of a request on a connection that stays open."""
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def in_threads(functions):
    """Runs all at once and waits for them."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def percentile(values, share):
    """As a plain number."""
    return float(np.percentile(values, share))


class Load:
    """Good, bad and slow clients at once; `seen` counts what they met."""

    def __init__(self, server, pictures, seconds):
        self.server, self.pictures = server, pictures
        self.end = time.perf_counter() + seconds
        self.seen = collections.Counter()
        self.wrong = []
        self.pings, self.memory = [], []
        with contextlib.closing(server.connect()) as connection:
            self.expected = [
                rows(ask(connection, "POST", "/invocations", picture, JPEG)[1])
                for picture in pictures
            ]

    def running(self):
        """Whether there is time left."""
        return time.perf_counter() < self.end

    def run(self):
        """All of them, until the end."""
        in_threads(
            [self.good] * CLIENTS + [self.bad] * 2 + [self.slow] * SLOW + [self.ping, self.watch]
        )

    def note(self, kind, right, what=""):
        """Counts an answer; `what` was wrong with it."""
        self.seen[f"{kind} {'right' if right else 'wrong'}"] += 1
        if not right:
            self.wrong.append(f"{kind}: {what}"[:300])

    def good(self):
        """Asks and compares."""
        with contextlib.closing(self.server.connect()) as connection:
            while self.running():
                index = random.randrange(len(self.pictures))
                try:
                    status, content = ask(
                        connection, "POST", "/invocations", self.pictures[index], JPEG
                    )
                except OSError as error:
                    self.note("good", False, repr(error))
                    connection.close()
                    continue
                right = status == 200 and agree(self.expected[index], rows(content))
                self.note("good", right, f"{status} {content[:200]}")

    def bad(self):
        """Sends requests that must be refused with a status and a reason."""
        picture = self.pictures[0]
        claim = bytearray(cv2.imencode(".png", np.zeros((3, 3, 3), np.uint8))[1].tobytes())
        claim[16:24] = (60_000).to_bytes(4, "big") * 2
        claim[29:33] = zlib.crc32(claim[12:29]).to_bytes(4, "big")
        requests = [
            (400, picture[: len(picture) // 2], "image/jpeg"),
            (400, random.randbytes(100_000), "image/png"),
            (400, picture[:200] + random.randbytes(20_000) + b"\xff\xd9", "image/jpeg"),
            (400, bytes(claim), "image/png"),
            (400, b"", "image/jpeg"),
            (400, random.randbytes(200_000), "multipart/form-data; boundary=x"),
            (400, b"\r\n--x" * 500_000, "multipart/form-data; boundary=x"),
            (413, bytes(21 * 2**20), "image/jpeg"),
            (415, picture, "text/html"),
        ]
        while self.running():
            status, body, content_type = random.choice(requests)
            # A connection of its own each, closed after it, half of them by the server.
            headers = {"Content-Type": content_type}
            if random.random() < 0.5:
                headers["Connection"] = "close"
            with contextlib.closing(self.server.connect()) as connection:
                try:
                    got, content = ask(connection, "POST", "/invocations", body, headers)
                    why = json.loads(content).get("error")
                    self.note("bad", got == status and bool(why), f"{got} {content[:200]}")
                except (OSError, ValueError) as error:
                    self.note("bad", False, f"{content_type} {len(body)} {error!r}")
            time.sleep(0.1)

    def slow(self):
        """Sends a request a byte at a time, or does not read its answers, until it is cut off."""
        while self.running():
            kind = random.choice(("slow header", "slow body", "never reads", "no HTTP"))
            try:
                cut_off = self.dawdle(kind)
            except OSError:
                cut_off = True
            self.seen[f"{kind}, {'cut off' if cut_off else 'until the end'}"] += 1

    def dawdle(self, kind):
        """Whether the server closed the connection."""
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=0.5) as client:
            if kind == "slow body":
                client.sendall(PART_OF_A_REQUEST)
            if kind == "no HTTP":
                client.sendall(random.randbytes(2000))
            while self.running():
                with contextlib.suppress(TimeoutError):
                    if kind == "never reads":
                        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
                        continue
                    client.sendall(b"x")
                    if not client.recv(4096):
                        return True
        return False

    def ping(self):
        """Has another process ask whether the server is healthy, because this one is busy."""
        times, sender = multiprocessing.Pipe(duplex=False)
        seconds = self.end - time.perf_counter()
        process = multiprocessing.get_context("spawn").Process(
            target=send_pings, args=(self.server.port, seconds, sender)
        )
        process.start()
        for status, taken in times.recv():
            self.pings.append(taken)
            self.note("ping", status == 200, status)
        process.join()

    def watch(self):
        """Notes the memory of the server."""
        while self.running():
            self.memory.append(self.server.resident())
            time.sleep(0.5)

    def figures(self):
        """The figures; memory growth counts from the second tenth of the time, after warm-up."""
        tenth = max(1, len(self.memory) // 10)
        before = statistics.median(self.memory[tenth : 2 * tenth])
        after = statistics.median(self.memory[-tenth:])
        return {
            "seen": dict(sorted(self.seen.items())),
            "wrong": self.wrong[:10],
            "ping_p50": percentile(self.pings, 50),
            "ping_p99": percentile(self.pings, 99),
            "ping_max": max(self.pings),
            "megabytes": [round(before / 2**20), round(after / 2**20)],
            "growth": after / before - 1,
        }


def send_pings(port, seconds, sender):
    """Sends back (status, seconds) of each ping, on a connection of its own."""
    pings, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            status, _ = ask(connection, "GET", "/ping")
        pings.append((status, time.perf_counter() - start))
        time.sleep(0.2)
    sender.send(pings)


def rows(content):
    """[class, score, xmin, ymin, xmax, ymax] of each detection."""
    return np.array(json.loads(content)["prediction"]).reshape(-1, 6)


def agree(expected, found):
    """Nearly all boxes are there: batches round differently, and random weights have many ties."""
    if not len(expected):
        return not len(found)
    near = np.abs(expected[:, None] - found[None]).max(-1) < 1e-3
    return len(found) > 0 and near.any(1).mean() > 0.9 and near.any(0).mean() > 0.9


def measure_load(server, pictures, seconds):
    """The figures of the load, and of the SIGTERM that ends it with requests in flight."""
    load = Load(server, pictures, seconds)
    load.run()
    last = []

    def final():
        with contextlib.closing(server.connect()) as connection:
            last.append(ask(connection, "POST", "/invocations", pictures[0], JPEG)[0])

    threads = [threading.Thread(target=final) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)  # all are accepted
    code, drained = server.stop()
    for thread in threads:
        thread.join()
    return {
        **load.figures(),
        "seconds": seconds,
        "sigterm": {"exit": code, "seconds": drained, "answers": last},
    }
