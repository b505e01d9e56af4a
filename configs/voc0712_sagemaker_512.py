"""The published table: 512 px, VOC2007+2012 trainval -> VOC2007 test, by the algorithm behind it.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  VGG16 at weights/vgg16.safetensors; MXNet's pre-activated ResNet-50 of ImageNet at
          weights/resnet-50-0000.params (docs/weights.md).
Run:      ssd-jax train --config configs/voc0712_sagemaker_512.py:resnet50_16 --workdir runs/sm
          The row is one of vgg16_64, vgg16_16, resnet50_64, resnet50_16: network and batch size.
          The published runs with a batch of 64 used four GPUs; here, statistics are those of four
          groups of 16 on any number of devices.
          experiments/voc_table/run.py trains all rows with several seeds.
Expected: 78.0, 78.0, 79.1, 79.6 in that order, as published for Amazon SageMaker Object Detection
          (AWS Machine Learning Blog), which does not say by which protocol. mxnet-ssd's README has
          79.9 (VGG16) and 79.1 (ResNet-50), VOC07 11-point by its own metric.
Cost:     240 epochs are 3.97 million images. Modelled, not measured (docs/voc.md): 1.5 (VGG16)
          and 0.8 (ResNet-50) H200 hours in bfloat16, with --config.model.dtype=bfloat16; 3.0 and
          1.6 in float32, as here, assuming that it takes twice as long.
Measured: builds and takes steps on CPUs; nothing at full size.
"""

from ml_collections import ConfigDict

from ssd_jax.config import VOC_CLASSES
from ssd_jax.errors import UserError
from ssd_jax.recipes import recipe_config

# network, batch, learning rate, file of weights
ROWS = {
    "vgg16_64": ("vgg16", 64, 4e-3, "weights/vgg16.safetensors"),
    "vgg16_16": ("vgg16", 16, 5e-4, "weights/vgg16.safetensors"),
    "resnet50_64": ("resnet50_v2", 64, 2e-3, "weights/resnet-50-0000.params"),
    "resnet50_16": ("resnet50_v2", 16, 5e-4, "weights/resnet-50-0000.params"),
}


def get_config(row: str = "vgg16_16") -> ConfigDict:
    if row not in ROWS:
        raise UserError(f"got row {row!r}, expected one of {', '.join(ROWS)}")
    backbone, batch_size, learning_rate, weights = ROWS[row]
    config = recipe_config("sagemaker", backbone)
    config.batch_size = batch_size
    config.optimizer.learning_rate = learning_rate
    config.weights.path = weights
    config.data.classes = VOC_CLASSES
    trainval = ("VOC2007/trainval", "VOC2012/trainval")
    config.data.train.update({"root": "data/VOCdevkit", "image_sets": trainval})
    config.data.val.update({"root": "data/VOCdevkit", "image_sets": ("VOC2007/test",)})
    config.evaluate.every_epochs = 10.0
    return config
