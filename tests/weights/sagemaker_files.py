"""Artefacts of SageMaker Object Detection, made up for the tests of the import."""

import io
import json
import tarfile

import jax
import numpy as np
from weights.mxnet_files import params_bytes

from ssd_jax.models.initialise import init_variables
from ssd_jax.models.ssd import build_model, feature_shapes
from ssd_jax.ops.anchors import mxnet_levels
from ssd_jax.weights.maps_mxnet import RESNET50_V2_SSD, VGG16_REDUCED_SSD

WIDTH = 1 / 64
NETWORKS = {
    "vgg-16": ({"backbone": "vgg16", "extras": "mxnet"}, VGG16_REDUCED_SSD),
    "resnet-50": ({"backbone": "resnet50_v2", "extras": "mxnet"}, RESNET50_V2_SSD),
}


class Made:
    """A thin network of random values, and the three files of its artefact."""

    def __init__(self, network: str, *, image_size: int, num_classes: int):
        keywords, layout = NETWORKS[network]
        keywords = {**keywords, "image_size": image_size}
        shapes = feature_shapes(**keywords)
        self.levels = mxnet_levels(image_size, shapes)
        model = build_model(
            **keywords,
            num_classes=num_classes,
            anchors_per_cell=tuple(level.anchors_per_cell for level in self.levels),
            width=WIDTH,
            batch_norm="none" if network == "vgg-16" else "batch",
        )
        rng = np.random.default_rng(0)
        self.variables = jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
            init_variables(model, image_size, seed=0),
        )
        leaves = jax.tree_util.tree_leaves_with_path(self.variables)
        ours = {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}
        self.params = {
            name: _theirs(name, ours[target.path])
            for name, target in layout.targets.items()
            if target.path in ours
        }
        if network == "resnet-50":
            self.params["arg:bn_data_gamma"] = np.full(3, 9, np.float32)
        self.symbol = {
            "nodes": self._nodes(),
            "attrs": {"mxnet_version": ["int", 10300]},
        }
        self.hyperparams = {
            "base_network": network,
            "image_shape": str(image_size),
            "num_classes": str(num_classes),
            "overlap_threshold": "0.5",
            "nms_threshold": "0.45",
        }

    def _nodes(self) -> list[dict]:
        """The operators that say something, in the order and wording of a real symbol."""
        heads = [name for name in self.params if name.endswith("_cls_pred_conv_weight")]
        features = [
            name.removeprefix("arg:").removesuffix("_cls_pred_conv_weight") for name in heads
        ]
        nodes = [{"op": "null", "name": "data", "inputs": []}]
        for name in self.params:
            operator = name.removeprefix("arg:")
            if operator.endswith("_gamma"):
                fixed = str(operator == "bn_data_gamma")
                arguments = {"eps": "2e-05", "fix_gamma": fixed, "momentum": "0.9"}
                nodes.append(_node("BatchNorm", operator.removesuffix("_gamma"), **arguments))
            elif operator.endswith("_weight"):
                filters = str(len(self.params[name]))
                conv = operator.removesuffix("_weight")
                nodes.append(_node("Convolution", conv, kernel="(3, 3)", num_filter=filters))
        for feature, level in zip(features, self.levels, strict=True):
            nodes.append(
                _node(
                    "_contrib_MultiBoxPrior",
                    f"{feature}_anchors",
                    clip="False",
                    sizes="({})".format(",".join(f"{size:g}" for size in level.sizes)),
                    ratios="({})".format(",".join(f"{ratio:.12g}" for ratio in level.ratios)),
                    steps=str(level.steps or (-1.0, -1.0)),
                )
            )
        detection = {
            "force_suppress": "False",
            "nms_threshold": "0.45",
            "nms_topk": "400",
            "variances": "(0.1, 0.1, 0.2, 0.2)",
        }
        return [*nodes, _node("_contrib_MultiBoxDetection", "detection", **detection)]

    def node(self, op: str) -> dict:
        """The first operator of that kind."""
        return next(node for node in self.symbol["nodes"] if node["op"] == op)

    def files(self) -> dict[str, bytes]:
        return {
            "model_algo_1-symbol.json": json.dumps(self.symbol).encode(),
            "hyperparams.json": json.dumps(self.hyperparams).encode(),
            "model_algo_1-0000.params": params_bytes(self.params),
        }

    def write(self, path) -> str:
        path.write_bytes(tar_bytes(self.files()))
        return str(path)


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _node(op: str, name: str, **arguments: str) -> dict:
    return {"op": op, "name": name, "attrs": arguments, "inputs": []}


def _theirs(name: str, ours: np.ndarray) -> np.ndarray:
    if ours.ndim == 4:
        return np.ascontiguousarray(ours.transpose(3, 2, 0, 1))
    return ours.reshape(1, -1, 1, 1) if name == "arg:relu4_3_scale" else ours
