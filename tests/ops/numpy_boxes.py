"""Plain NumPy references, and boxes on which float32 arithmetic is exact so that ties are ties."""

import numpy as np


def grid_boxes(rng: np.random.Generator, count: int, *, cells: int = 8) -> np.ndarray:
    """Random boxes with corners on a coarse grid: many equal overlaps, some boxes without area."""
    corners = rng.integers(0, cells + 1, (2, count, 2))
    return np.concatenate([corners.min(0), corners.max(0)], axis=1).astype(np.float32) / cells


def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else np.float32(0)


def iou_table(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    return np.array([[iou(a, b) for b in boxes_b] for a in boxes_a], np.float32)


def greedy_nms(
    boxes: np.ndarray, valid: np.ndarray, threshold: float, *, strict: bool = True
) -> np.ndarray:
    """Rows in falling order of score; a row is kept unless a kept one overlaps it too much."""
    overlap = iou_table(boxes, boxes)
    overlap = overlap > np.float32(threshold) if strict else overlap >= np.float32(threshold)
    keep = np.zeros(len(boxes), bool)
    for i in range(len(boxes)):
        keep[i] = valid[i] and not (keep[:i] & overlap[i, :i]).any()
    return keep
