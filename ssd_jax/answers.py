"""Detections of one image in the two JSON formats of SageMaker's built-in object detection.

https://docs.aws.amazon.com/sagemaker/latest/dg/object-detection-in-formats.html
"""

from typing import Any

from ssd_jax.types import Detections

NORMALISED = "application/json"
PIXELS = "application/json;annotation=1"


def normalised(found: Detections) -> dict[str, Any]:
    """`{"prediction": [[class, score, xmin, ymin, xmax, ymax], ...]}`, corners in [0, 1].

    `found` is without the batch axis. All detections are included, also those with low scores.
    """
    rows = zip(*_valid(found), strict=True)
    return {"prediction": [[float(label), score, *box] for label, score, box in rows]}


def pixels(found: Detections, size: tuple[int, int]) -> dict[str, Any]:
    """The format of `annotation=1`, in whole pixels of an image of `size` (height, width)."""
    height, width = size
    annotations = []
    for label, score, (xmin, ymin, xmax, ymax) in zip(*_valid(found), strict=True):
        left, top = round(xmin * width), round(ymin * height)
        annotations.append(
            {
                "class_id": label,
                "score": score,
                "left": left,
                "top": top,
                "width": round(xmax * width) - left,
                "height": round(ymax * height) - top,
            }
        )
    return {
        "image_size": [{"width": width, "height": height, "depth": 3}],
        "annotations": annotations,
    }


def _valid(found):
    return (
        found.labels[found.valid].tolist(),
        found.scores[found.valid].tolist(),
        found.boxes[found.valid].tolist(),
    )
