"""Folders as finished runs leave them, without training."""

import json

import numpy as np

from ssd_jax.config import default_config, save_config
from ssd_jax.files import write_json
from ssd_jax.report.collect import describe_run
from ssd_jax.visualize.boxes import save_png

CLASSES = ("cat", "<dog>")


def make_run(folder, *, score=0.5, fingerprint="abc", **changes):
    """A run of two classes, one with a name that HTML would take for a tag."""
    folder.mkdir(parents=True)
    config = default_config()
    config.data.train.root = "data/pets"
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    save_config(config, folder / "config.json")
    lines = [
        {"step": step, "split": "train", "loss": 3.0 / step, "lr": 0.1, "images_per_second": 10.0,
         "data_wait": 0.01, "host_memory_gib": 0.1 * step}
        for step in range(1, 11)
    ] + [{"step": 10, "split": "val", "map_voc07": score}]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"map_voc07": score, "map_voc12": None}
    for index, name in enumerate(CLASSES):
        metrics |= {f"ap_voc07/{name}": score, f"ap_voc12/{name}": index / 2}
    split = {"images": 5, "objects": 9, "fingerprint": "f00", "left_out": {"D101": 2},
             "doctor": {"D101": 2}}  # fmt: skip
    write_json(
        folder / "report.json",
        {
            "headline": f"mAP@.5 (VOC07 11-point) = {score:.3f}",
            "metrics": metrics,
            "protocol": {"map11": "VOC07 11-point, 5 images", "split": "val",
                         "fingerprint": fingerprint},
            "step": 10,
            "classes": CLASSES,
            "thresholds": {
                "iou_threshold": 0.5,
                "all": {"score": 0.375, "f1": 0.8125, "precision": 0.875, "recall": 0.75},
                "per_class": {
                    "cat": {"score": 0.4375, "f1": 0.6875, "precision": 0.5625, "recall": 0.9375},
                    "<dog>": None,
                },
            },
            "data": {"train": split, "val": split},
            **describe_run(config, folder),
        },
    )  # fmt: skip
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for name in ("curves.png", "examples_worst.png"):
        save_png(folder / "pictures" / name, picture)
    return folder


def make_unfinished_run(folder, *, map_voc07=0.5, **changes):
    """A run that was evaluated at step 12, and has told of step 15 since."""
    make_run(folder, **changes)
    for path in (folder / "report.json", *(folder / "pictures").iterdir()):
        path.unlink()
    averages = {f"ap_voc07/{name}": map_voc07 for name in CLASSES}
    with (folder / "metrics.jsonl").open("a") as lines:
        for step, split, values in (
            (12, "val", {"map_voc07": map_voc07, **averages, "seconds": 1.0}),
            (15, "train", {"loss": 0.2, "lr": 0.1}),
        ):
            lines.write(json.dumps({"step": step, "split": split, **values}) + "\n")
    return folder
