"""SSD300 with VGG16, VOC2007+2012 trainval -> VOC2007 test, after https://arxiv.org/abs/1512.02325.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors, see docs/weights.md.
Run:      ssd-jax train --config configs/voc0712_vgg16_300.py --workdir runs/voc300
Expected: 77.2 (the paper's authors, Caffe, README of their `ssd` branch), 77.6 (GluonCV), 77.7
          (lufficc): mAP@.5 (VOC07 11-point), difficult ignored.
Cost:     240 epochs are 3.97 million images. Modelled, not measured: an H200 trains 2,090
          images/s of a batch of 64 at 0.70 of the coarse roofline in bfloat16, which makes 0.5 GPU
          hours; the float32 of this config is taken for twice as long, 1.1.
Measured: that it builds and steps, on CPUs; nothing at full size. At 128 px, 12 epochs of 1,500
          photos, its recipe comes to 26.3 (experiments/voc300).
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
