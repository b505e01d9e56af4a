"""The recipe `best` with VGG16 at 512 px, VOC2007+2012 trainval -> VOC2007 test; docs/best.md.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet VGG16 at weights/vgg16.safetensors (docs/weights.md).
Run:      ssd-jax train --config configs/best_vgg16_512.py --workdir runs/best_vgg16
          With `:multi_scale` after the file name it trains and evaluates at several image sizes.
Expected: mAP@.5 (VOC07 11-point) above 80.7, the highest published for a plain SSD512 (README of
          lufficc/SSD), and near 83.0, the highest of any detector on VGG16 at 512 px (HSD). Those
          numbers are from one view; this recipe adds the mirrored image. With `:multi_scale`
          above 84.2, the highest with several sizes (RefineDet++512).
Cost:     240 epochs are 3.97 million images of 539 GFLOP (three forward passes of 180, by XLA's
          count). Modelled, not measured: 720 images/s on an H200, 1.5 GPU hours, if it is as fast
          per FLOP as the plain network (docs/voc.md). `:multi_scale` has 3 % more pixels in
          training and 3 times as many in evaluation.
Measured: builds and takes steps on CPUs; nothing at full size.
"""

from ml_collections import ConfigDict

from ssd_jax.config import VOC_CLASSES
from ssd_jax.errors import UserError
from ssd_jax.recipes import recipe_config

# The second two are trained and measured at several image sizes.
VARIANTS = ("vgg16", "resnet50", "multi_scale", "resnet50_multi_scale")


def get_config(variant: str = "vgg16") -> ConfigDict:
    if variant not in VARIANTS:
        raise UserError(f"got variant {variant}, expected one of {', '.join(VARIANTS)}")
    backbone = "resnet50" if variant.startswith("resnet50") else "vgg16"
    config = recipe_config("best", backbone)
    config.data.classes = VOC_CLASSES
    trainval = ("VOC2007/trainval", "VOC2012/trainval")
    config.data.train.update({"root": "data/VOCdevkit", "image_sets": trainval})
    config.data.val.update({"root": "data/VOCdevkit", "image_sets": ("VOC2007/test",)})
    config.model.dtype = "bfloat16"
    config.weights.path = f"weights/{backbone}.safetensors"
    config.evaluate.every_epochs = 10.0
    if variant.endswith("multi_scale"):
        config.augment.image_sizes = (384, 448, 512, 576, 640)
        config.detect.image_sizes = (384, 512, 640)
    return config
