"""A detector for images of your own (docs/data.md).

Run:     ssd-jax train --config configs/own_images.py --workdir runs/mine
             --config.data.train.root=FOLDER --config.data.val.root=FOLDER

Default: the small network of configs/bccd.py at 256 px, from scratch; a CPU is enough.
With a GPU: SSD300 from ImageNet weights, --config configs/own_images.py:vgg16, with
--config.weights.path=FILE; docs/weights.md says which (default: weights/vgg16.safetensors).
FOLDER is in VOC layout or has YOLO's data.yaml; for COCO or RecordIO give the files,
--config.data.train.root=train.json and --config.data.val.root=val.json. SSD300's anchors start at
10 % of the image side: for smaller objects set --config.anchors.scales (`ssd-jax doctor` shows how
well the anchors fit).
"""

from ml_collections import ConfigDict

from ssd_jax.config import default_config
from ssd_jax.errors import UserError


def get_config(variant: str = "small") -> ConfigDict:
    config = default_config()
    config.batch_size = 16
    for split in ("train", "val"):
        config.data[split].image_sets = (split,)
    config.evaluate.every_epochs = 5.0
    config.checkpoint.select = "best"
    if variant == "vgg16":
        config.epochs = 60.0
        config.weights.path = "weights/vgg16.safetensors"
        config.optimizer.update(
            {
                "learning_rate": 5e-4,
                "warmup_steps": 200,
                "clip_norm": 35.0,
            }
        )
    elif variant == "small":
        config.epochs = 90.0
        config.model.update(
            {"backbone": "small", "image_size": 256, "batch_norm": "batch", "batch_norm_group": 8}
        )
        config.preprocess.std = (58.395, 57.12, 57.375)
        config.optimizer.update(
            {
                "name": "adamw",
                "schedule": "one_cycle",
                "learning_rate": 4e-3,
                "weight_decay": 0.02,
                "clip_norm": 10.0,
            }
        )
    else:
        raise UserError(f"variant: got {variant!r}, expected small or vgg16")
    return config
