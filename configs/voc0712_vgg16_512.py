"""SSD512 with VGG16, VOC2007+2012 trainval -> VOC2007 test, after https://arxiv.org/abs/1512.02325.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors, see docs/weights.md.
Run:      ssd-jax train --config configs/voc0712_vgg16_512.py --workdir runs/voc512
Expected: 79.8 (the paper's authors, Caffe, README of their `ssd` branch), 79.2 (GluonCV): mAP@.5
          (VOC07 11-point), difficult ignored.
Cost:     240 epochs are 3.97 million images. Modelled, not measured: an H200 trains 740
          images/s of a batch of 64 at 0.70 of the coarse roofline in bfloat16, which makes 1.5 GPU
          hours; the float32 of this config is taken for twice as long, 3.0.
Measured: that it builds and steps, on CPUs; nothing at full size.
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(str(pathlib.Path(__file__).with_name("voc0712_vgg16_300.py")))
    config.model.image_size = 512
    return config
