"""A detector that computes nothing, and a video for it."""

import cv2
import numpy as np

from ssd_jax.types import Detections


class Fake:
    """Finds a dog in the left half of every picture and a cat, less surely, in the upper half."""

    classes = ("cat", "dog")
    canvas = 32

    def __init__(self):
        self.batches = []

    def predict(self, canvas, extent):
        self.batches.append(len(canvas))
        boxes = np.array([[0, 0, 0.5, 1], [0, 0, 1, 0.5], [0, 0, 0, 0]], np.float32)
        rows = (boxes, np.array([0.75, 0.25, 0], np.float32), np.array([1, 0, 0], np.int32))
        valid = np.array([True, True, False])
        return Detections(*(np.stack([row] * len(canvas)) for row in (*rows, valid)))


def write_video(path):
    """Ten frames of 64 x 48 pixels that grow brighter, five a second."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return path
