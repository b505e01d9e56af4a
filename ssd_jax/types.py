"""The four records that are passed between the parts of the package, and their conventions.

Boxes are float32 `xyxy` (xmin, ymin, xmax, ymax), normalised to the true image, in [0, 1].
Public class ids are 0..C-1; logit channel 0 is background and is used only in `ops` and `models`.
Padding is marked by a mask, never by a special value.

Letters in shapes, everywhere in the package:

    B  images of a batch        A  anchors (default boxes)      S  side of the network's input
    G  padded objects           C  classes without background   H, W  canvas height and width
    N  objects of one image     K  kept detections
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

# Added to edges in pixels it gives PASCAL VOC's coordinates: its pixels count from 1, and both
# corners of a box belong to it.
VOC_OFFSET = np.array([1.0, 1.0, 0.0, 0.0])
# Boxes that are normalised, even as centre and size, end at most here if they are read as pixels.
NORMALISED_BOXES_END = 1.5


class Example(NamedTuple):
    """One annotated image from a source, not yet decoded.

    `size` is the (height, width) in pixels by which the boxes were normalised; decoding checks it.
    It is None if the format does not have it.
    """

    name: str
    image: bytes
    size: tuple[int, int] | None
    boxes: Float[np.ndarray, "N 4"]
    labels: Int[np.ndarray, "N"]
    difficult: Bool[np.ndarray, "N"]


class Batch(NamedTuple):
    """Decoded images and padded objects: NumPy arrays on the host, `jax.Array` on the mesh.

    The image is in the upper left corner of its canvas; `extent` is its (height, width) there,
    `size` the (height, width) of the file, which is larger if it was scaled down to fit. `real` is
    False for rows that only pad the last batch of an evaluation. `sample_id` is the record's index
    in its source.
    """

    canvas: UInt8[Array | np.ndarray, "*B H W 3"]
    extent: Int[Array | np.ndarray, "*B 2"]
    size: Int[Array | np.ndarray, "*B 2"]
    boxes: Float[Array | np.ndarray, "*B G 4"]
    labels: Int[Array | np.ndarray, "*B G"]
    difficult: Bool[Array | np.ndarray, "*B G"]
    valid: Bool[Array | np.ndarray, "*B G"]
    sample_id: Int[Array | np.ndarray, "*B"]
    real: Bool[Array | np.ndarray, "*B"]


class Targets(NamedTuple):
    """The training target of each anchor.

    `class_ids` counts background as 0, so a matched anchor holds its label + 1. Anchors that are
    neither `positive` nor `negative` are ignored.
    """

    box_deltas: Float[Array, "*B A 4"]
    class_ids: Int[Array, "*B A"]
    positive: Bool[Array, "*B A"]
    negative: Bool[Array, "*B A"]


class Detections(NamedTuple):
    """The K best boxes of an image, by falling score; rows that are not `valid` are padding."""

    boxes: Float[Array | np.ndarray, "*B K 4"]
    scores: Float[Array | np.ndarray, "*B K"]
    labels: Int[Array | np.ndarray, "*B K"]
    valid: Bool[Array | np.ndarray, "*B K"]
