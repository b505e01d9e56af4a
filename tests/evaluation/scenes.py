"""Objects and detections of images, small enough to be written down, or random."""

import numpy as np

from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes


def truth(*boxes, labels=None, difficult=None):
    n = len(boxes)
    return GroundTruth(
        np.array(boxes, np.float64).reshape(n, 4),
        np.array(labels if labels is not None else [0] * n, np.int64),
        np.array(difficult if difficult is not None else [False] * n, bool),
    )


def found(*boxes, scores=(), labels=None):
    n = len(boxes)
    return ScoredBoxes(
        np.array(boxes, np.float64).reshape(n, 4),
        np.array(scores, np.float64),
        np.array(labels if labels is not None else [0] * n, np.int64),
    )


def random_problem(seed, *, images=6, classes=3, ties=False):
    """Objects on a coarse grid, so that equal overlaps are common, and detections near them."""
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner, side = rng.integers(0, 12, (n, 2)), rng.integers(0, 8, (n, 2))
        return np.concatenate([corner, corner + side], axis=1).astype(np.float64)

    truths, detections = [], []
    for _ in range(images):
        n, k = rng.integers(0, 6), rng.integers(0, 12)
        objects = GroundTruth(boxes(n), rng.integers(0, classes, n), rng.random(n) < 0.3)
        near = rng.integers(0, n, k) if n else np.zeros(k, int)
        shifted = (objects.boxes[near] if n else boxes(k)) + rng.integers(-1, 2, (k, 4))
        keep = (rng.random((k, 1)) < 0.7) & (n > 0)
        scores = rng.integers(0, 5, k) / 4 if ties else rng.random(k)
        truths.append(objects)
        detections.append(
            ScoredBoxes(np.where(keep, shifted, boxes(k)), scores, rng.integers(0, classes, k))
        )
    return truths, detections
