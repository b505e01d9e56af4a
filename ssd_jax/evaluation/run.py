"""Evaluation of a network on a source: predict, gather, and the metric in NumPy."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ssd_jax.data.pipeline import evaluation_batches, max_objects
from ssd_jax.data.sources.base import Source
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes, VocResult, evaluate_voc
from ssd_jax.sharding import gather, put_batch
from ssd_jax.types import Batch, Detections

# Pixels count from 1, and both corners of a box belong to it.
_FROM_ONE = np.array([1.0, 1.0, 0.0, 0.0])


class Evaluation(NamedTuple):
    """The metric, and image by image what it compared; boxes in pixels as the devkit counts.

    `result` is the devkit's. `counted` asks for difficult objects too, as where their flag was lost
    on the way (the VOC notebooks of SageMaker); `mxnet` is mxnet-ssd's own metric, errors included.
    """

    result: VocResult
    counted: VocResult
    mxnet: VocResult
    ground_truths: list[GroundTruth]
    detections: list[ScoredBoxes]


def evaluate(
    predict: Callable[[Any, jax.Array, jax.Array], Detections],
    variables: Any,
    source: Source,
    *,
    mesh: Mesh,
    batch_size: int,
    canvas: int,
    iou_threshold: float = 0.5,
    num_threads: int = 4,
) -> Evaluation:
    """Measures every image of the source once.

    `predict` takes batches on the mesh; `batch_size` is rounded up to a multiple of its devices.
    """
    batch_size = math.ceil(batch_size / mesh.size) * mesh.size
    batches = evaluation_batches(
        source,
        batch_size=batch_size,
        canvas=canvas,
        max_objects=max_objects(source),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=num_threads,
    )
    ground_truths, detections = [], []
    for batch in tqdm(
        batches,
        total=math.ceil(len(source) / batch_size),
        desc="evaluating",
        leave=False,
        disable=None,
    ):
        on_mesh = put_batch(batch, mesh)
        found = predict(variables, on_mesh.canvas, on_mesh.extent)
        # Both come back by way of the mesh, so that their rows agree on any number of processes.
        found, truth = gather((found, on_mesh._replace(canvas=on_mesh.extent)))
        for row in np.flatnonzero(truth.real).tolist():
            ground_truths.append(_ground_truth(truth, row))
            detections.append(_scored_boxes(found, truth.size[row], row))
    metric = functools.partial(
        evaluate_voc, num_classes=len(source.classes), iou_threshold=iou_threshold
    )
    return Evaluation(
        result=metric(ground_truths, detections),
        counted=metric(ground_truths, detections, difficult="counted"),
        mxnet=metric(
            [_with_edges(record) for record in ground_truths],
            [_with_edges(record) for record in detections],
            plus_one=False,
            iou_rule=">",
            counting="mxnet-ssd",
        ),
        ground_truths=ground_truths,
        detections=detections,
    )


def summary(evaluation: Evaluation, classes: tuple[str, ...]) -> dict[str, float | None]:
    """The numbers by name: the mean average precisions, and the devkit's of each class."""
    result = evaluation.result
    values = {
        "map_voc07": result.map11,
        "map_voc12": result.map,
        "map_voc07_difficult_counted": evaluation.counted.map11,
        "map_mxnet": evaluation.mxnet.map11,
    }
    for name, of_class in zip(classes, result.per_class, strict=True):
        values[f"ap_voc07/{name}"] = of_class.ap11
        values[f"ap_voc12/{name}"] = of_class.ap
    return values


def _with_edges(record: GroundTruth | ScoredBoxes) -> GroundTruth | ScoredBoxes:
    """Corners between the pixels, which a metric without +1 measures."""
    return record._replace(boxes=record.boxes - _FROM_ONE)


def _ground_truth(batch: Batch, row: int) -> GroundTruth:
    valid = batch.valid[row]
    return GroundTruth(
        # Back to the whole pixels of the annotation, which float32 misses by a rounding error.
        boxes=np.round(_devkit_pixels(batch.boxes[row][valid], batch.size[row]), 2),
        labels=batch.labels[row][valid],
        difficult=batch.difficult[row][valid],
    )


def _scored_boxes(found: Detections, size: np.ndarray, row: int) -> ScoredBoxes:
    valid = found.valid[row]
    return ScoredBoxes(
        boxes=_devkit_pixels(found.boxes[row][valid], size),
        scores=found.scores[row][valid],
        labels=found.labels[row][valid],
    )


def _devkit_pixels(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Normalised edges to pixels counted from 1, both corners inside, as VOC writes them."""
    height, width = size
    edges = boxes.astype(np.float64) * [width, height, width, height]
    return edges + _FROM_ONE
