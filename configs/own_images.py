"""SSD300 with VGG16 on images of your own, in VOC layout (docs/data.md).

Weights: an ImageNet VGG16 at weights/vgg16.safetensors, see docs/weights.md; training starts from
         scratch with --config.weights.path='', which asks for far more images and epochs.
Run:     ssd-jax train --config configs/own_images.py --workdir runs/mine
             --config.data.train.root=FOLDER --config.data.val.root=FOLDER
"""

from ml_collections import ConfigDict

from ssd_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.epochs = 60.0
    config.batch_size = 16
    for split in ("train", "val"):
        config.data[split].image_sets = (split,)
    config.weights.path = "weights/vgg16.safetensors"
    config.optimizer.update(
        {
            "learning_rate": 5e-4,
            "decay_epochs": (40.0, 50.0),
            "warmup_steps": 200,
            "clip_norm": 35.0,
        }
    )
    config.evaluate.every_epochs = 5.0
    config.checkpoint.select = "best"
    return config
