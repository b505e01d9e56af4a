"""SSD300 with VGG16, VOC2007+2012 trainval -> VOC2007 test, after https://arxiv.org/abs/1512.02325.

Data:    the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights: an ImageNet VGG16 at weights/vgg16.safetensors, see docs/weights.md.
Run:     ssd-jax train --config configs/voc0712_vgg16_300.py --workdir runs/voc300
Result:  not measured yet. The paper's authors report 77.2 (Caffe, README of their `ssd` branch),
         GluonCV 77.6: mAP@.5 (VOC07 11-point), difficult ignored.
"""

from ml_collections import ConfigDict

from ssd_jax.config import VOC_CLASSES, default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.epochs = 240.0
    config.batch_size = 32
    config.data.classes = VOC_CLASSES
    trainval = ("VOC2007/trainval", "VOC2012/trainval")
    config.data.train.update({"root": "data/VOCdevkit", "image_sets": trainval})
    config.data.val.update({"root": "data/VOCdevkit", "image_sets": ("VOC2007/test",)})
    config.data.update({"canvas": 512, "threads": 16})
    config.weights.path = "weights/vgg16.safetensors"
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 500, "clip_norm": 35.0})
    config.evaluate.every_epochs = 10.0
    return config
