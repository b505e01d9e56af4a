"""The recipe `best` with ResNet-50 at 512 px, VOC2007+2012 trainval -> VOC2007 test; docs/best.md.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet ResNet-50 v1.5 at weights/resnet50.safetensors (docs/weights.md). Better
          pretrained: --config.weights.path=hf://timm/resnet50.a1_in1k/model.safetensors
          (docs/best.md).
Run:      ssd-jax train --config configs/best_resnet50_512.py --workdir runs/best_resnet50
          With `:multi_scale` after the file name it trains and evaluates at several image sizes.
Expected: mAP@.5 (VOC07 11-point) above 81.5 (TorchCV's README, SSD with ResNet-50 and a feature
          pyramid at 512 px, one scale); plain SSDs reach 80.1 (GluonCV) and 79.6. Those numbers
          are from one view; this recipe adds the mirrored image.
Cost:     240 epochs are 3.97 million images of 162 GFLOP (three forward passes of 54, by XLA's
          count). Modelled, not measured: 1,200 images/s on an H200, 0.9 GPU hours, if it is as
          fast per FLOP as the plain network (docs/voc.md).
Measured: builds and takes steps on CPUs; nothing at full size.
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config


def get_config(variant: str = "") -> ConfigDict:
    both = pathlib.Path(__file__).with_name("best_vgg16_512.py")
    return load_config(f"{both}:{'_'.join(filter(None, ('resnet50', variant)))}")
