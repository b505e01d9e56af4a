"""The figures in the folder of a run."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from ssd_jax.data.decode import decode_image
from ssd_jax.data.sources.base import Source
from ssd_jax.evaluation.metrics import Evaluation
from ssd_jax.runs.log import read_metrics
from ssd_jax.train.hooks import Augment, call_augment
from ssd_jax.types import VOC_OFFSET, Batch
from ssd_jax.visualize.boxes import detection_grid, save_png, training_grid
from ssd_jax.visualize.curves import plot_curves

SHOWN = 12
# Large photographs are scaled down to this many pixels for a mosaic.
SHOWN_SIDE = 512


def draw_augmented(
    batch: Batch,
    path: pathlib.Path,
    *,
    classes: tuple[str, ...],
    augment: Augment,
) -> None:
    """The first images of a batch as the network will see them at step 0, with their boxes.

    `augment` is the augmentation of the training step.
    """
    few = jax.tree.map(lambda column: np.asarray(column)[:SHOWN], batch)
    images, few = jax.jit(lambda batch: call_augment(augment, batch, 0))(few)
    save_png(
        path,
        training_grid(images, few.boxes, few.labels, few.valid, classes=classes),
    )


def draw_detections(
    source: Source,
    evaluation: Evaluation,
    path: pathlib.Path,
    *,
    images: Sequence[int],
    iou_threshold: float,
) -> None:
    """Ground truth next to detections for the given images; for none the figure is removed."""
    if not images:
        path.unlink(missing_ok=True)
        return
    pixels, truths, found = [], [], []
    for index in images:
        example = source[index]
        # The size comes from the file: not every data format has it (`types.Example`).
        canvas, (height, width), size = decode_image(example.image, example.name, SHOWN_SIDE)
        pixels.append(canvas[:height, :width])
        truths.append(_normalised(evaluation.ground_truths[index], size))
        found.append(_normalised(evaluation.detections[index], size))
    picture = detection_grid(
        pixels, truths, found, classes=source.classes, iou_threshold=iou_threshold
    )
    save_png(path, picture)


def draw_curves(metrics_file: pathlib.Path, path: pathlib.Path) -> None:
    """Loss, learning rate and mAP over the steps of the run."""
    plot_curves(read_metrics(metrics_file), path)


def _normalised(record, size):
    """Convert boxes from the devkit's pixels, which an evaluation has, to normalised ones."""
    height, width = size
    edges = record.boxes - VOC_OFFSET
    return record._replace(boxes=(edges / [width, height, width, height]).astype(np.float32))
