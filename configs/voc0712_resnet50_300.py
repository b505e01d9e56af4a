"""SSD300 with ResNet-50 (v1.5), VOC2007+2012 trainval -> VOC2007 test.

Data:     the official VOC tar files unpacked into data/VOCdevkit (VOC2007/ and VOC2012/).
Weights:  an ImageNet ResNet-50 v1.5 at weights/resnet50.safetensors (docs/weights.md).
Run:      ssd-jax train --config configs/voc0712_resnet50_300.py --workdir runs/voc300_resnet50
Expected: not known: no result of this network on VOC has been published. SSD300 with VGG16 has
          77.2 to 77.7 (configs/voc0712_vgg16_300.py), mAP@.5 (VOC07 11-point).
Cost:     240 epochs are 3.97 million images of 54 GFLOP (three forward passes of 18, by XLA's
          count). Modelled, not measured: 3,600 images/s on an H200 in bfloat16, 0.3 GPU hours, if
          it is as fast per FLOP as SSD512 with ResNet-50 (docs/voc.md); 0.6 in float32, as here,
          assuming that it takes twice as long.
Measured: builds and takes steps on CPUs; nothing at full size.

Its first feature map has stride 8, 38 x 38 cells, like VGG16's. GluonCV's SSD512 begins at stride
16, which at 300 px would leave 19 x 19 cells for all small objects.
"""

import pathlib

from ml_collections import ConfigDict

from ssd_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(str(pathlib.Path(__file__).with_name("voc0712_resnet50_512.py")))
    config.model.update({"image_size": 300, "first_stage": 2})
    return config
