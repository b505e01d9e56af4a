"""Servers in processes of their own."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import httpx
import numpy as np

PAINTED = pathlib.Path(__file__).with_name("painted.py")


class Running:
    """A server process: its address, its log, and a client."""

    def __init__(self, process, log):
        self.process, self._log = process, log
        listening = self.wait_for("listening")
        self.port = listening["port"]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def events(self, event):
        lines = self._log.read_text().splitlines(keepends=True)
        told = [json.loads(line) for line in lines if line.startswith("{") and line[-1] == "\n"]
        return [each for each in told if each["event"] == event]

    def wait_for(self, event, *, seconds=120, **fields):
        """The latest line of the log with these fields."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for told in reversed(self.events(event)):
                if fields.items() <= told.items():
                    return told
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {event} {fields} in:\n{self._log.read_text()}")

    def wait_until_healthy(self, *, seconds=120):
        end = time.monotonic() + seconds
        while self.client.get("/ping").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        return self

    def post(self, data, content_type="image/jpeg", **headers):
        headers["Content-Type"] = content_type
        return self.client.post("/invocations", content=data, headers=headers)

    def stop(self):
        """SIGTERM; gives the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=40)


@contextlib.contextmanager
def running(command, folder, **environment):
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        )
    server = None
    try:
        server = Running(process, log)
        yield server
    finally:
        process.kill()
        process.wait()
        if server:
            server.client.close()


def painted_server(folder, **options):
    """`painted.py` with these options."""
    return running([PAINTED, json.dumps(options)], folder)


def picture(red=255, *, size=(30, 40), kind=".png", blue=0):
    """An encoded picture of one colour, of (height, width) pixels."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 2], image[..., 0] = red, blue
    return cv2.imencode(kind, image)[1].tobytes()
