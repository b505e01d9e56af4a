"""A whole job that is quick, the example of docs/sagemaker.md: its files, settings and command."""

import json
import pathlib
import re

from sagemaker.opt_ml import write_config

from ssd_jax.data.convert import run_convert

PAGE = pathlib.Path(__file__).parents[2] / "docs/sagemaker.md"
# By their names, which stand before them.
EXAMPLE = {
    name: json.loads(text)
    for name, text in re.findall(
        r"config/(\w+\.json)`[^`]*```json\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
}
HYPERPARAMETERS = EXAMPLE["hyperparameters.json"] | {
    "num_training_samples": "20",
    # All but the heads, which spares the compiler most of the gradient.
    "freeze_layer_pattern": "^(conv|fc|relu4_3_scale|multi_feat_._conv_.x._conv).*",
}
# The container has no smaller network; these make it quick.
QUICK = [
    "--config.model.width=0.02",
    "--config.model.image_size=64",
    "--config.data.canvas=64",
    "--config.data.threads=0",
    "--config.augment.interpolations=linear",
    "--config.augment.jitter.probability=0",
    "--config.augment.expand.probability=0",
    "--config.augment.crop.min_ious=()",
    "--config.detect.candidates=50",
    "--config.detect.max_detections=20",
]


def prepare(root, shapes, **changes):
    for name, split in (("train", "train"), ("validation", "val")):
        folder = root / "input/data" / name
        folder.mkdir(parents=True)
        run_convert(str(shapes), str(folder / "data.rec"), split=(split,))
    changed = {"hyperparameters.json": HYPERPARAMETERS | changes}
    for name, content in (EXAMPLE | changed).items():
        write_config(root, name, content)
    return root


def command(root):
    return ["-m", "ssd_jax", "sagemaker", "train", "--root", str(root), *QUICK]
