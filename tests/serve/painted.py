"""A server whose engine finds nothing but the colour of a picture: its tests need no network.

    python painted.py '{"batches": [1, 2, 4], "seconds": 0.05, "limits": {"queue": 8}}'

`seconds` is what each batch takes, `warm_up` what the first takes, `token` what it asks for.
"""

import json
import sys
import time

import numpy as np

from ssd_jax.serve.pictures import Limits
from ssd_jax.serve.server import listen, serve
from ssd_jax.types import Detections


class PaintedEngine:
    """Two boxes a picture: one over all of it whose score is its redness, and one of class 1."""

    engine, why = "painted", "it needs no network"
    classes = ("red", "middle")
    canvas = 64

    def __init__(self, *, seconds=0.0, warm_up=0.0):
        self.meta = {"step": 7}
        self._seconds, self._next = seconds, warm_up

    def predict(self, canvas, extent):
        time.sleep(self._next)
        self._next = self._seconds
        if canvas[0, 0, 0].tolist() == [0, 0, 255]:  # a blue corner
            raise RuntimeError("out of memory")
        count = len(canvas)
        pictures = zip(canvas, extent, strict=True)
        redness = np.array([rows[:h, :w, 0].mean() for rows, (h, w) in pictures]) / 255
        whole, middle = [0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.75, 1.0]
        return Detections(
            boxes=np.tile(np.array([whole, middle, whole], np.float32), (count, 1, 1)),
            scores=np.stack(
                [redness, np.full(count, 0.125), np.zeros(count)], axis=1, dtype=np.float32
            ),
            labels=np.tile(np.array([0, 1, 0], np.int32), (count, 1)),
            valid=np.tile(np.array([True, True, False]), (count, 1)),
        )


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    serve(
        PaintedEngine(seconds=options.get("seconds", 0.0), warm_up=options.get("warm_up", 0.0)),
        listen("127.0.0.1", 0),
        batches=options.get("batches", [1, 2, 4]),
        limits=Limits(**options.get("limits", {})),
        token=options.get("token"),
    )
