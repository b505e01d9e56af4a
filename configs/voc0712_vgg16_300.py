"""SSD300 with VGG16, VOC2007+2012 trainval -> VOC2007 test, after https://arxiv.org/abs/1512.02325.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors (docs/weights.md).
Run:      ssd-jax train --config configs/voc0712_vgg16_300.py --workdir runs/voc300
Expected: 77.2 (the paper's authors, Caffe, README of their `ssd` branch), 77.6 (GluonCV), 77.7
          (lufficc): mAP@.5 (VOC07 11-point), difficult objects ignored.
Cost:     240 epochs are 3.97 million images. Modelled, not measured (docs/voc.md): 0.5 H200
          hours in bfloat16; 1.1 in float32, as here, assuming that it takes twice as long.
Measured: builds and takes steps on CPUs; nothing at full size. The same recipe at
          128 px, 12 epochs of 1,500 photos, reaches 24.7 (23.2 to 26.3, three seeds;
          experiments/voc300).
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
    config.data.canvas = 512
    config.weights.path = "weights/vgg16.safetensors"
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 500, "clip_norm": 35.0})
    config.evaluate.every_epochs = 10.0
    return config
