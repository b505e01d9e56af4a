"""Which tensor of a weight file belongs where in our tree, as explicit tables.

Our paths are written collection/module/.../leaf, for example "params/backbone/conv1_1/kernel".
Patterns are shell globs, in which * also crosses slashes.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ssd_jax.errors import UserError

_VGG16_CONVOLUTIONS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # convolutions in each block
_VGG16_NAMES = tuple(
    f"conv{block}_{index}"
    for block, convolutions in _VGG16_CONVOLUTIONS.items()
    for index in range(1, convolutions + 1)
)
# Where torchvision's `vgg16().features` holds them, between ReLUs and pools.
_TORCHVISION_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# A classification network knows nothing of what SSD adds to it.
_NEW_IN_SSD = (
    "params/backbone/conv4_3_norm/*",
    "params/backbone/fc6*",
    "params/backbone/fc7*",
    "params/extras/*",
    "params/heads/*",
    "*_bn/*",
)


class Target(NamedTuple):
    """A path of ours, and what turns the file's array into ours."""

    path: str
    transform: Callable[[np.ndarray], np.ndarray]


class NameMap(NamedTuple):
    """One layout of weight files: name in the file -> target.

    `not_in_file` are our paths that such a file never holds, `not_for_us` its names that we do not
    take.
    """

    name: str
    targets: dict[str, Target]
    not_in_file: tuple[str, ...] = ()
    not_for_us: tuple[str, ...] = ()


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _oihw_to_hwio(kernel: np.ndarray) -> np.ndarray:
    # An array that is no kernel at all goes on as it is, to be reported as mis-shaped.
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)) if kernel.ndim == 4 else kernel


VGG16_CAFFE_NAMES = NameMap(
    name="vgg16 with Caffe's names, HWIO",
    targets={
        f"{conv}/{leaf}": Target(f"params/backbone/{conv}/{leaf}", _unchanged)
        for conv in _VGG16_NAMES
        for leaf in ("kernel", "bias")
    },
    not_in_file=_NEW_IN_SSD,
)

VGG16_TORCHVISION = NameMap(
    name="vgg16 of torchvision",
    targets={
        f"features.{index}.{leaf}": Target(f"params/backbone/{conv}/{ours}", transform)
        for index, conv in zip(_TORCHVISION_INDICES, _VGG16_NAMES, strict=True)
        for leaf, ours, transform in (
            ("weight", "kernel", _oihw_to_hwio),
            ("bias", "bias", _unchanged),
        )
    },
    not_in_file=_NEW_IN_SSD,
    # The classifier, as torchvision and as timm call it.
    not_for_us=("classifier.*", "pre_logits.*", "head.*"),
)

_MAPS = (VGG16_CAFFE_NAMES, VGG16_TORCHVISION)


def find_map(names: Iterable[str]) -> NameMap:
    """Give the map that knows any of the names; no two maps share one."""
    names = list(names)
    for name_map in _MAPS:
        if not name_map.targets.keys().isdisjoint(names):
            return name_map
    known = "; ".join(f"{m.name} ({next(iter(m.targets))}, ...)" for m in _MAPS)
    raise UserError(
        f"no known layout of weights has any of the names {', '.join(sorted(names)[:5])}, ... "
        f"({len(names)} in all). Known are: {known}."
    )
