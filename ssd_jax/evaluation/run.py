"""Evaluation of a network on a source: prediction, gathering, and metrics in NumPy."""

import itertools
import math
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from ssd_jax.data.pipeline import evaluation_batches, max_objects
from ssd_jax.data.sources.base import Source, check_not_empty
from ssd_jax.evaluation.metrics import (
    Evaluation,
    annotated_pixels,
    devkit_pixels,
    measure_detections,
)
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes
from ssd_jax.sharding import gather, put_batch
from ssd_jax.types import Batch, Detections


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
    with_coco: bool = True,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> Evaluation:
    """Evaluate every image of the source once.

    `predict` takes batches on the mesh; `batch_size` is rounded up to a multiple of its devices.
    `with_coco` adds COCO's metric, which takes seconds for thousands of images. `watch` wraps the
    iteration over batches and may end the evaluation with an exception.
    """
    check_not_empty(source, "evaluate")
    began = perf_counter()
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
    progress = tqdm(
        watch(batches),
        total=math.ceil(len(source) / batch_size),
        desc="evaluating",
        leave=False,
        disable=None,
    )

    def dispatched():
        for batch in progress:
            on_mesh = put_batch(batch, mesh)
            found = predict(variables, on_mesh.canvas, on_mesh.extent)
            # Both return through the mesh, so that their rows agree on any number of processes.
            yield found, on_mesh._replace(canvas=on_mesh.extent)

    ground_truths, detections, sizes = [], [], []
    # Wait for results only after the next batch was sent, so that the devices do not wait.
    for on_devices, _ in itertools.pairwise(itertools.chain(dispatched(), (None,))):
        found, truth = gather(on_devices)
        for row in np.flatnonzero(truth.real).tolist():
            ground_truths.append(_ground_truth(truth, row))
            detections.append(_scored_boxes(found, truth.size[row], row))
            sizes.append(truth.size[row])
    evaluation = measure_detections(
        ground_truths,
        detections,
        np.array(sizes),
        num_classes=len(source.classes),
        iou_threshold=iou_threshold,
        with_coco=with_coco,
    )
    return evaluation._replace(seconds=perf_counter() - began)


def _ground_truth(batch: Batch, row: int) -> GroundTruth:
    valid = batch.valid[row]
    return GroundTruth(
        boxes=annotated_pixels(batch.boxes[row][valid], batch.size[row]),
        labels=batch.labels[row][valid],
        difficult=batch.difficult[row][valid],
    )


def _scored_boxes(found: Detections, size: np.ndarray, row: int) -> ScoredBoxes:
    valid = found.valid[row]
    return ScoredBoxes(
        boxes=devkit_pixels(found.boxes[row][valid], size),
        scores=found.scores[row][valid],
        labels=found.labels[row][valid],
    )
