"""SSD300 with VGG16, COCO 2017 train -> val, as the paper's authors train it.

Data:     COCO's train2017.zip, val2017.zip and annotations_trainval2017.zip, from
          https://cocodataset.org, unpacked into data/coco/.
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors (docs/weights.md).
Run:      ssd-jax train --config configs/coco_vgg16_300.py --workdir runs/coco300
Expected: mAP@[.5:.95] 25.1 on val2017 (torchvision, `ssd300_vgg16`), 25.1 on test-dev (the
          paper's authors, Caffe, README of their `ssd` branch).
Cost:     400,000 steps are 12.8 million images. Modelled, not measured (docs/voc.md): 1.7 H200
          hours in bfloat16; 3.4 in float32, as here, assuming that it takes twice as long.
Measured: builds and takes steps on CPUs; nothing at full size.

It differs from the VOC config in smaller anchors, in the number of steps (three times as many, 108
epochs of COCO instead of 240 of VOC), and in when the learning rate falls, all as in the authors'
`ssd_coco.py`.
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config

TRAIN_IMAGES = 118_287


def get_config() -> ConfigDict:
    config = load_config(str(pathlib.Path(__file__).with_name("voc0712_vgg16_300.py")))
    config.epochs, config.steps = None, 400_000
    steps_per_epoch = TRAIN_IMAGES / config.batch_size
    config.optimizer.decay_epochs = (280_000 / steps_per_epoch, 360_000 / steps_per_epoch)
    config.anchors.scales = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    config.data.classes = ()
    for name in ("train", "val"):
        root = f"data/coco/annotations/instances_{name}2017.json"
        config.data[name].update({"root": root, "image_sets": ()})
    config.evaluate.metric = "coco"
    return config
