"""The loop of an evaluation: batches go to the devices ahead of the answers."""

import jax
import numpy as np

from ssd_jax.data.open import open_data
from ssd_jax.evaluation.run import evaluate
from ssd_jax.sharding import make_mesh
from ssd_jax.types import Detections


class Told:
    """An array that tells when it is fetched."""

    def __init__(self, array, tell):
        self.array, self.tell = array, tell

    def __array__(self, *_, **__):
        self.tell()
        return self.array


def test_the_next_batch_is_sent_before_the_last_one_is_waited_for(shapes):
    source = open_data(str(shapes), split=("val",))
    events = []

    def predict(variables, canvas, extent):
        number, size = len([event for event in events if event[0] == "sent"]), len(canvas)
        events.append(("sent", number))
        nothing = np.zeros((size, 1), bool)
        return Detections(
            boxes=np.zeros((size, 1, 4)),
            scores=np.zeros((size, 1)),
            labels=np.zeros((size, 1), int),
            valid=Told(nothing, lambda: events.append(("fetched", number))),
        )

    measured = evaluate(
        predict,
        None,
        source,
        mesh=make_mesh(jax.devices()[:1]),
        batch_size=4,
        canvas=64,
        iou_threshold=0.6,
        with_coco=False,
    )

    assert events == [
        ("sent", 0),
        ("sent", 1),
        ("fetched", 0),
        ("sent", 2),
        ("fetched", 1),
        ("fetched", 2),
    ]
    assert len(measured.detections) == len(source)
    assert measured.result.protocol.iou_threshold == 0.6
