"""The recipe `best` with ResNet-50 at 512 px, VOC2007+2012 trainval -> VOC2007 test; docs/best.md.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet ResNet-50 v1.5 at weights/resnet50.safetensors, see docs/weights.md; better
          one: --config.weights.path=hf://timm/resnet50.a1_in1k/model.safetensors (docs/best.md).
Run:      ssd-jax train --config configs/best_resnet50_512.py --workdir runs/best_resnet50
Expected: to beat 81.5 (TorchCV's README, SSD with ResNet-50 and a feature pyramid at 512 px, one
          scale); plain ones have 80.1 (GluonCV) and 79.6. mAP@.5 (VOC07 11-point), one view; this
          recipe looks at the mirrored image too. With `:multi_scale` behind the file it is trained
          and measured at several image sizes.
Cost:     240 epochs are 3.97 million images of 162 GFLOP (three forward passes of 54, by XLA's
          count). Modelled, not measured: as fast by the FLOP as the plain network at 0.70 of the
          coarse roofline, which makes 1,200 images/s on an H200 and 0.9 GPU hours.
Measured: that it builds and steps, on CPUs; nothing at full size.
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config


def get_config(variant: str = "") -> ConfigDict:
    both = pathlib.Path(__file__).with_name("best_vgg16_512.py")
    return load_config(f"{both}:{'_'.join(filter(None, ('resnet50', variant)))}")
