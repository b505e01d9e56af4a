"""SSD512 with ResNet-50 (v1.5), VOC2007+2012 trainval -> VOC2007 test; feature maps of GluonCV.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet ResNet-50 v1.5 at weights/resnet50.safetensors (docs/weights.md).
Run:      ssd-jax train --config configs/voc0712_resnet50_512.py --workdir runs/voc512_resnet50
Expected: 80.1 (GluonCV, ssd_512_resnet50_v1_voc, ImageNet weights): mAP@.5 (VOC07 11-point).
Cost:     240 epochs are 3.97 million images. Modelled, not measured (docs/voc.md): 0.8 H200
          hours in bfloat16; 1.6 in float32, as here, assuming that it takes twice as long.
Measured: builds and takes steps on CPUs; nothing at full size.
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(str(pathlib.Path(__file__).with_name("voc0712_vgg16_512.py")))
    config.model.update({"backbone": "resnet50", "batch_norm": "batch", "batch_norm_group": 8})
    config.anchors.layout = "gluoncv"
    config.preprocess.std = (58.395, 57.12, 57.375)
    config.weights.path = "weights/resnet50.safetensors"
    return config
