"""The rows of the published table by the paper's recipe: 512 px, VOC2007+2012 -> VOC2007 test.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors, ResNet-50 v1.5 at
          weights/resnet50.safetensors (docs/weights.md).
Run:      ssd-jax train --config configs/voc0712_paper_512.py:resnet50_16 --workdir runs/paper
          The row is one of vgg16_64, vgg16_16, resnet50_64, resnet50_16: network and batch size.
          experiments/voc_table/run.py trains all of them with several seeds.
Expected: mAP@.5 (VOC07 11-point), all with a batch of 32: VGG16 79.8 (the paper's authors, README
          of Caffe's `ssd` branch) and 79.2 (GluonCV), ResNet-50 80.1 (GluonCV). The published
          rows, by another algorithm, have 78.0, 78.0, 79.1 and 79.6.
Cost:     240 epochs are 3.97 million images. Modelled, not measured (docs/voc.md): 1.5 (VGG16)
          and 0.8 (ResNet-50) H200 hours in bfloat16, with --config.model.dtype=bfloat16; 3.0 and
          1.6 in float32, as here, assuming that it takes twice as long.
Measured: builds and takes steps on CPUs; nothing at full size.

The learning rate is the paper's 0.001 for a batch of 32, scaled with the batch. For three rows this
is also the published number, for vgg16_64 half of it. Equal numbers are not equal steps: the other
algorithm divides its losses by about four times as much, so its steps are a quarter of these
(docs/recipes.md).
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config
from ssd_jax.errors import UserError

# network, batch, learning rate
ROWS = {
    "vgg16_64": ("vgg16", 64, 2e-3),
    "vgg16_16": ("vgg16", 16, 5e-4),
    "resnet50_64": ("resnet50", 64, 2e-3),
    "resnet50_16": ("resnet50", 16, 5e-4),
}


def get_config(row: str = "vgg16_16") -> ConfigDict:
    if row not in ROWS:
        raise UserError(f"got row {row!r}, expected one of {', '.join(ROWS)}")
    backbone, batch_size, learning_rate = ROWS[row]
    file = pathlib.Path(__file__).with_name(f"voc0712_{backbone}_512.py")
    config = load_config(str(file))
    config.batch_size = batch_size
    config.optimizer.learning_rate = learning_rate
    return config
