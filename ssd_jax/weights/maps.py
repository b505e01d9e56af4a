"""The elements of name tables, which say where a tensor of a weight file belongs in our variables.

Our paths are written collection/module/.../leaf, for example "params/backbone/conv1_1/kernel".
Patterns are shell globs, in which * also matches slashes. The tables are in `maps_*.py`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np


class Target(NamedTuple):
    """One of our paths, and the transform from the file's array to ours.

    The transform may raise ValueError, IndexError or TypeError for an array of another rank, which
    is then reported as mis-shaped. It may return a view, because its result is copied.
    """

    path: str
    transform: Callable[[np.ndarray], np.ndarray]


class Input(NamedTuple):
    """The mean and the scale, in RGB pixel values from 0 to 255, that normalise images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __str__(self) -> str:
        return f"config.preprocess: mean {tuple(self.mean)}, std {tuple(self.std)}"

    def is_like(self, other: "Input") -> bool:
        """Whether black and white are mapped to similar values, within a fifth of the largest."""
        ours, theirs = (
            [(grey - m) / s for m, s in zip(each.mean, each.std, strict=True) for grey in (0, 255)]
            for each in (self, other)
        )
        apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        return apart < 0.2 * max(map(abs, ours + theirs))


class NameMap(NamedTuple):
    """One layout of weight files: name in the file -> target.

    `not_in_file` are our paths that such a file need not hold, `not_for_us` its names that we do
    not use. `biases` belong to convolutions that have none in our network: name in the file -> our
    running mean after that convolution, from which the bias is subtracted, because
    (x + bias) - mean = x - (mean - bias). `backbones` are the networks that the file was trained
    for, and `expects` is the input that it was trained on, or where to look it up.
    """

    name: str
    targets: dict[str, Target]
    not_in_file: tuple[str, ...] = ()
    not_for_us: tuple[str, ...] = ()
    biases: Mapping[str, str] = MappingProxyType({})
    backbones: tuple[str, ...] = ()
    expects: Input | str = ""


def unchanged(array: np.ndarray) -> np.ndarray:
    """Return the same array."""
    return array


def oihw_to_hwio(kernel: np.ndarray) -> np.ndarray:
    """Turn a kernel of PyTorch or MXNet into Flax's order; a view."""
    return kernel.transpose(2, 3, 1, 0)


def norm_targets(path: str, scale: str, bias: str, mean: str, var: str) -> dict[str, Target]:
    """The targets of a BatchNorm, from its four names in the file and `path`, our module."""
    return {
        scale: Target(f"params/{path}/scale", unchanged),
        bias: Target(f"params/{path}/bias", unchanged),
        mean: Target(f"batch_stats/{path}/mean", unchanged),
        var: Target(f"batch_stats/{path}/var", unchanged),
    }


TORCHVISION_INPUT = Input((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE_INPUT = Input((123.68, 116.779, 103.939), (1, 1, 1))
