"""The recipe `best` with VGG16 at 512 px, VOC2007+2012 trainval -> VOC2007 test; docs/best.md.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors, see docs/weights.md.
Run:      ssd-jax train --config configs/best_vgg16_512.py --workdir runs/best_vgg16
Expected: not measured yet. To beat 80.7, the highest published of a plain SSD512 (README of
          lufficc/SSD), and to come near 83.0, the highest of any detector on VGG16 at 512 px (HSD):
          mAP@.5 (VOC07 11-point), one view; this recipe looks at the mirrored image too.
Cost:     not measured yet. 240 epochs are 3.97 million images of 539 GFLOP (three forward passes of
          180, by XLA's count): 1.6 hours of an H200 if it trains 675 images/s, which is the goal
          for the plain network, 690, less the share of the pyramid.
"""

from ml_collections import ConfigDict

from ssd_jax.config import VOC_CLASSES
from ssd_jax.recipes import recipe_config


def get_config(backbone: str = "vgg16") -> ConfigDict:
    config = recipe_config("best", backbone)
    config.data.classes = VOC_CLASSES
    trainval = ("VOC2007/trainval", "VOC2012/trainval")
    config.data.train.update({"root": "data/VOCdevkit", "image_sets": trainval})
    config.data.val.update({"root": "data/VOCdevkit", "image_sets": ("VOC2007/test",)})
    config.data.threads = 16
    config.model.dtype = "bfloat16"
    config.weights.path = f"weights/{backbone}.safetensors"
    config.evaluate.every_epochs = 10.0
    return config
