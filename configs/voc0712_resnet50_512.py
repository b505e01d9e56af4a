"""SSD512 with ResNet-50 (v1.5), VOC2007+2012 trainval -> VOC2007 test; maps as GluonCV's.

Data:    the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights: an ImageNet ResNet-50 v1.5 at weights/resnet50.safetensors, see docs/weights.md.
Run:     ssd-jax train --config configs/voc0712_resnet50_512.py --workdir runs/voc512_resnet50
Result:  not measured yet. GluonCV reports 80.1 with ImageNet weights (ssd_512_resnet50_v1_voc).
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
