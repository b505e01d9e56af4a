"""Label rows as MXNet has them, in our terms."""

import numpy as np


def objects(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes, labels, valid) of rows (class, xyxy, ...), which end at the first class of -1."""
    valid = np.logical_and.accumulate(rows[..., 0] != -1, axis=1)
    return rows[..., 1:5], rows[..., 0].astype(np.int32), valid
