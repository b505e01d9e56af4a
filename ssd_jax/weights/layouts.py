"""Recognition of the layout of a weight file."""

from collections.abc import Collection

from ssd_jax.errors import UserError
from ssd_jax.weights.maps import NameMap
from ssd_jax.weights.maps_gluoncv import GLUONCV_MAPS
from ssd_jax.weights.maps_mxnet import MXNET_MAPS
from ssd_jax.weights.maps_resnet import RESNET50_KERAS, RESNET50_TORCHVISION, RESNET50_V2_TIMM
from ssd_jax.weights.maps_vgg import (
    VGG16_CAFFE_NAMES,
    VGG16_KERAS,
    VGG16_REDUCED_TORCH,
    VGG16_TORCHVISION,
)

LAYOUTS = (
    VGG16_CAFFE_NAMES,
    VGG16_TORCHVISION,
    VGG16_REDUCED_TORCH,
    VGG16_KERAS,
    RESNET50_TORCHVISION,
    RESNET50_KERAS,
    RESNET50_V2_TIMM,
    *GLUONCV_MAPS,
    *MXNET_MAPS,
)


def find_layout(names: Collection[str]) -> NameMap:
    """The layout that knows most of the names; of equal ones the one with the fewest others."""
    names = set(names)

    def fit(layout: NameMap) -> tuple[int, int]:
        return len(layout.targets.keys() & names), -len(layout.targets)

    best = max(LAYOUTS, key=fit)
    if best.targets.keys().isdisjoint(names):
        known = "; ".join(
            f"{layout.name} ({next(iter(layout.targets))}, ...)" for layout in LAYOUTS
        )
        raise UserError(
            f"no known layout of weights has any of the names {', '.join(sorted(names)[:5])}, ... "
            f"({len(names)} in total), expected one of: {known}."
        )
    return best
