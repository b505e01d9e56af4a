"""When two results on one picture are the same, and what follows when they are not."""

import types

import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.export import verify
from ssd_jax.export.folder import ModelFolder
from ssd_jax.export.verify import compare
from ssd_jax.types import Detections

LIMITS = {"score_threshold": 0.01, "max_detections": 5}


def detections(*rows):
    """Rows of (label, xmin, score), padded."""
    boxes = np.zeros((5, 4), np.float32)
    scores, labels = np.zeros(5, np.float32), np.zeros(5, np.int32)
    for index, (label, xmin, score) in enumerate(rows):
        boxes[index], scores[index], labels[index] = (xmin, 0.1, 0.9, 0.9), score, label
    return Detections(boxes, scores, labels, np.arange(5) < len(rows))


ROWS = ((0, 0.1, 0.9), (1, 0.2, 0.8), (0, 0.3, 0.5))


def test_the_largest_difference_is_told():
    moved = ((0, 0.1, 0.9), (1, 0.20005, 0.8), (0, 0.3, 0.50002))
    assert compare(detections(*ROWS), detections(*ROWS), **LIMITS) == 0
    far = compare(detections(*ROWS), detections(*moved), **LIMITS)
    assert far == pytest.approx(5e-5, rel=0.01)


def test_close_scores_may_change_places():
    one, other = (0, 0.1, 0.50001), (1, 0.2, 0.5)
    assert compare(detections(one, other), detections(other, one), **LIMITS) == 0


def test_of_several_counterparts_the_nearest_is_taken():
    rows = ((0, 0.1, 0.9), (0, 0.10008, 0.9), (0, 0.10016, 0.9))
    moved = ((0, 0.10008, 0.9), (0, 0.1, 0.9), (0, 0.10016, 0.9))
    assert compare(detections(*rows), detections(*moved), **LIMITS) == 0


def test_what_just_reaches_the_threshold_may_be_missing():
    edge = (2, 0.4, 0.01 + 5e-5)
    assert compare(detections(*ROWS, edge), detections(*ROWS), **LIMITS) == 0
    assert compare(detections(*ROWS), detections(*ROWS, edge), **LIMITS) == 0


def test_the_last_of_a_full_list_may_be_another():
    first, second = (0, 0.1, 0.40001), (1, 0.3, 0.4)
    assert compare(detections(*ROWS, (1, 0.4, 0.45), first),
                   detections(*ROWS, (1, 0.4, 0.45), second), **LIMITS) == 0  # fmt: skip
    with pytest.raises(UserError):
        compare(detections(*ROWS, first), detections(*ROWS, second), **LIMITS)


@pytest.mark.parametrize(
    "other",
    [
        ROWS[:2],
        (*ROWS, (0, 0.5, 0.4)),
        ((0, 0.1, 0.9), (0, 0.2, 0.8), (0, 0.3, 0.5)),
        ((0, 0.1, 0.9), (1, 0.2002, 0.8), (0, 0.3, 0.5)),
        ((0, 0.1, 0.9), (1, 0.2, 0.8002), (0, 0.3, 0.5)),
        ((0, np.nan, 0.9), (1, 0.2, 0.8), (0, 0.3, 0.5)),
    ],
    ids=["lost", "added", "class", "box", "score", "nan"],
)
def test_differences(other):
    with pytest.raises(UserError, match="detections of both have no counterpart within 1e-04"):
        compare(detections(*ROWS), detections(*other), **LIMITS)


@pytest.mark.parametrize(("differs", "is_fatal"), [("openvino", False), ("onnxruntime", True)])
def test_only_openvino_may_find_something_else(differs, is_fatal, monkeypatch):
    canvas, extent = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 2), 4, np.int32)
    fields = {name: np.stack([array] * 2) for name, array in detections(*ROWS)._asdict().items()}
    cases = {"canvas": canvas, "extent": extent}
    cases |= {f"{name}_{row}": array[row] for name, array in fields.items() for row in (0, 1)}

    folder = ModelFolder("model", {"detect": LIMITS, "model": {"backbone": "small"}}, {})

    def opened(source, engine):
        assert source is folder  # its files are not read again
        found = Detections(**fields)
        if engine == differs:
            found = found._replace(boxes=found.boxes + 0.01)
        return types.SimpleNamespace(predict=lambda *batch: found, seconds_an_image=lambda: 0.1)

    monkeypatch.setattr(verify, "_stablehlo", lambda folder: lambda *batch: Detections(**fields))
    monkeypatch.setattr(verify, "installed_engines", lambda folder: ("jax", differs))
    monkeypatch.setattr(verify, "open_exported", opened)
    if is_fatal:
        with pytest.raises(UserError, match="onnxruntime, image 0: 6 of the 6 detections"):
            verify._check(folder, cases)
    else:
        results = verify._check(folder, cases)
        assert results["jax"] == {"largest_deviation": 0.0, "seconds": 0.1}
        # The time of an accelerator says nothing of the processor that it is written beside.
        monkeypatch.setattr(verify.jax, "default_backend", lambda: "gpu")
        assert verify._check(folder, cases)["jax"] == {"largest_deviation": 0.0}
        assert "6 of the 6 detections" in results["openvino"]["refused"]
