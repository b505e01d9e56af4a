"""The reference's networks as ours: which words build them, and how their tensors are named."""

import re
from typing import NamedTuple

import jax
from oracle.reference import seeded_parameter

from ssd_jax.models import ssd
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.ops.anchors import mxnet_legacy_levels, mxnet_levels
from ssd_jax.weights import maps_mxnet
from ssd_jax.weights.maps import NameMap


class Network(NamedTuple):
    """A network of mxnet-ssd at an image size; `words` are those of `build_model`."""

    words: dict
    name_map: NameMap
    image_size: int
    legacy: bool = False

    def feature_shapes(self):
        places = {word: self.words[word] for word in ("backbone", "extras")}
        return ssd.feature_shapes(**places, image_size=self.image_size)

    def levels(self):
        levels = mxnet_legacy_levels if self.legacy else mxnet_levels
        return levels(self.image_size, self.feature_shapes())

    def build(self, num_classes):
        return ssd.build_model(
            **self.words,
            image_size=self.image_size,
            num_classes=num_classes,
            anchors_per_cell=tuple(level.anchors_per_cell for level in self.levels()),
        )


_RESNET_WORDS = {
    "backbone": "resnet50_v2",
    "extras": "mxnet",
    "batch_norm": "batch",
    "batch_norm_epsilon": 2e-5,
}
_NETWORKS = {
    "vgg16_reduced": ({"backbone": "vgg16", "extras": "mxnet"}, maps_mxnet.VGG16_REDUCED_SSD),
    "legacy_vgg16": ({"backbone": "vgg16", "extras": "paper"}, maps_mxnet.LEGACY_VGG16_SSD),
    "resnet50": (_RESNET_WORDS, maps_mxnet.RESNET50_V2_SSD),
}


def network_of(name):
    """The network that a vector's name, "resnet50_512_...", begins with; None if it is not one."""
    for start, (words, name_map) in _NETWORKS.items():
        if found := re.match(rf"{start}(?:_ssd)?_(\d+)(?=_|$)", name):
            return Network(words, name_map, int(found[1]), legacy=start.startswith("legacy"))
    return None


def seeded_variables(model, network, seed):
    """Our variables from the reference's generator, through the name map of its files."""
    names = {target.path: name for name, target in network.name_map.targets.items()}
    transforms = {target.path: target.transform for target in network.name_map.targets.values()}

    def fill(path, leaf):
        path = "/".join(entry.key for entry in path)
        name = names[path].partition(":")[2]
        return transforms[path](seeded_parameter(name, mxnet_shape(path, leaf.shape), seed))

    return jax.tree_util.tree_map_with_path(fill, variable_shapes(model, network.image_size))


def mxnet_shape(path, shape):
    if path.endswith("conv4_3_norm/scale"):
        return (1, *shape, 1, 1)
    return tuple(shape[i] for i in (3, 2, 0, 1)) if path.endswith("/kernel") else shape
