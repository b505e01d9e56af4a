"""SSD512 with VGG16, VOC2007+2012 trainval -> VOC2007 test, after https://arxiv.org/abs/1512.02325.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors (docs/weights.md).
Run:      ssd-jax train --config configs/voc0712_vgg16_512.py --workdir runs/voc512
Expected: 79.8 (the paper's authors, Caffe, README of their `ssd` branch), 79.2 (GluonCV): mAP@.5
          (VOC07 11-point), difficult objects ignored.
Cost:     240 epochs are 3.97 million images. Modelled, not measured (docs/voc.md): 1.5 H200
          hours in bfloat16; 3.0 in float32, as here, assuming that it takes twice as long.
Measured: builds and takes steps on CPUs; nothing at full size.
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(str(pathlib.Path(__file__).with_name("voc0712_vgg16_300.py")))
    config.model.image_size = 512
    return config
