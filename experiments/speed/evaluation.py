"""The cost of evaluation at the size of VOC2007 test: metrics, decoding and NMS.

    python experiments/speed/evaluation.py [--rounds 5]

Boxes are synthetic: 4,952 images with 14,976 objects of 20 classes, and 100 detections per image,
one of them near each of half of the objects. Prints seconds as JSON, the median of the rounds:

    voc          `evaluate_voc`, CPU time
    coco         `evaluate_coco`, and faster-coco-eval alone on the dicts of a file
    detections   decoding and NMS of an image's 24,564 anchors in 20 classes, wall time
"""

import argparse
import json
import os
import statistics
import time

import jax
import numpy as np

from ssd_jax.evaluation.coco import evaluate_coco
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes, evaluate_voc
from ssd_jax.ops.detect import multibox_detection
from ssd_jax.sharding import each_device_alone, make_mesh, split, use_cpu_cores

IMAGES, OBJECTS, FOUND, CLASSES, ANCHORS, BATCH = 4952, 14976, 100, 20, 24564, 4
BATCHES = 8  # one after the other, as in evaluation


def boxes_and_labels(rng, count):
    """Boxes in pixels of an image of 500 x 375."""
    sides = np.minimum(rng.uniform(20, 300, (count, 2)), [480, 355])
    corner = rng.uniform(0, 1, (count, 2)) * ([500, 375] - sides)
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    return boxes, rng.integers(0, CLASSES, count).astype(np.int32)


def make_problem(seed=0):
    """The ground truth and the detections of every image."""
    rng = np.random.default_rng(seed)
    counts = 1 + np.bincount(rng.integers(0, IMAGES, OBJECTS - IMAGES), minlength=IMAGES)
    truths, found = [], []
    for count in counts:
        boxes, labels = boxes_and_labels(rng, count)
        truths.append(GroundTruth(boxes, labels, rng.random(count) < 0.2))
        near, near_labels = boxes_and_labels(rng, FOUND)
        scores = (rng.random(FOUND) ** 4).astype(np.float32)
        hits = np.flatnonzero(rng.random(min(count, FOUND)) < 0.8)
        near[hits] = boxes[hits] + 8 * rng.standard_normal((len(hits), 4))
        near_labels[hits], scores[hits] = labels[hits], rng.uniform(0.3, 1, len(hits))
        found.append(ScoredBoxes(boxes=near, scores=scores, labels=near_labels))
    return truths, found


def coco_alone(truths, found):
    """The work of a program without this package for the same boxes, from dicts to numbers."""
    from faster_coco_eval import COCO, COCOeval_faster

    def annotations(records, **more):
        for image, record in enumerate(records, start=1):
            corners = record.boxes.astype(float)
            sides = corners[:, 2:] - corners[:, :2]
            for row, (corner, side) in enumerate(zip(corners[:, :2], sides, strict=True)):
                yield {
                    "image_id": image,
                    "category_id": int(record.labels[row]) + 1,
                    "bbox": [*corner.tolist(), *side.tolist()],
                    **{name: value(record, row, side) for name, value in more.items()},
                }

    objects = [
        {"id": number, "iscrowd": 0, **each}
        for number, each in enumerate(annotations(truths, area=lambda r, i, side: side.prod()), 1)
    ]
    scored = list(annotations(found, score=lambda record, row, side: float(record.scores[row])))

    def run():
        dataset = {
            "images": [{"id": number} for number in range(1, IMAGES + 1)],
            "categories": [{"id": number} for number in range(1, CLASSES + 1)],
            "annotations": objects,
        }
        ground_truth = COCO(dataset)
        metric = COCOeval_faster(ground_truth, ground_truth.loadRes(scored), "bbox")
        metric.evaluate()
        metric.accumulate()

    return run


def detections():
    """A batch on all cores, as in evaluation; scores as of a trained network, few of them high."""
    rng = np.random.default_rng(0)
    corner = rng.random((ANCHORS, 2)).astype(np.float32)
    anchors = np.concatenate([corner, np.full((ANCHORS, 2), 0.1, np.float32)], 1)
    deltas = rng.standard_normal((BATCH, ANCHORS, 4)).astype(np.float32)
    logits = rng.standard_normal((BATCH, ANCHORS, CLASSES + 1)).astype(np.float32)
    logits[..., 0] += 8
    scores = np.asarray(jax.nn.softmax(logits))
    mesh = make_mesh()
    mapped = jax.vmap(multibox_detection, (0, 0, None))
    batch = each_device_alone(lambda anchors, *rows: mapped(*rows, anchors), mesh)
    rows = jax.device_put((deltas, scores), split(mesh))
    return lambda: [jax.block_until_ready(batch(anchors, *rows)) for _ in range(BATCHES)]


def main():
    """Takes turns, so that other work on the machine slows all of them alike."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    use_cpu_cores(BATCH)
    truths, found = make_problem()
    contests = {
        "voc": (lambda: evaluate_voc(truths, found, num_classes=CLASSES), time.process_time, 1),
        "coco": (
            lambda: evaluate_coco(truths, found, num_classes=CLASSES), time.process_time, 1,
        ),
        "coco_alone": (coco_alone(truths, found), time.process_time, 1),
        "detections": (detections(), time.perf_counter, BATCH * BATCHES),
    }  # fmt: skip
    contests["detections"][0]()
    seconds = {name: [] for name in contests}
    for _ in range(options.rounds):
        for name, (run, clock, images) in contests.items():
            start = clock()
            run()
            seconds[name].append((clock() - start) / images)
    figures = {name: round(statistics.median(each), 4) for name, each in seconds.items()}
    print(json.dumps({"cores": os.cpu_count(), "load": os.getloadavg()[0], "seconds": figures}))


if __name__ == "__main__":
    main()
