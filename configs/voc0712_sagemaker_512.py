"""The published table: 512 px, VOC2007+2012 trainval -> VOC2007 test, by the algorithm behind it.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  VGG16 at weights/vgg16.safetensors; MXNet's pre-activated ResNet-50 of ImageNet at
          weights/resnet-50-0000.params. docs/weights.md says where they come from.
Run:      ssd-jax train --config configs/voc0712_sagemaker_512.py:resnet50_16 --workdir runs/sm
          The row is one of vgg16_64, vgg16_16, resnet50_64, resnet50_16: network and batch. 64 was
          trained on four GPUs; its statistics are those of four groups of 16 on any number.
          experiments/voc_table/run.py trains all of them with several seeds.
Expected: 78.0, 78.0, 79.1, 79.6 in that order, as published for Amazon SageMaker Object Detection
          (AWS Machine Learning Blog); by which protocol is not said there. mxnet-ssd's README has
          79.9 (VGG16) and 79.1 (ResNet-50), VOC07 11-point by its own metric.
Cost:     240 epochs are 3.97 million images. Modelled, not measured: an H200 trains 740 (VGG16) and
          1,400 (ResNet-50) images/s of a batch of 64 at 0.70 of the coarse roofline in bfloat16,
          which makes 1.5 and 0.8 GPU hours. The float32 of this config is taken for twice as long,
          3.0 and 1.6; --config.model.dtype=bfloat16 takes the other.
Measured: that it builds and steps, on CPUs; nothing at full size.
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
