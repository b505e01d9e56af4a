"""The artefact of a SageMaker Object Detection job: `model.tar.gz`.

It holds `model_algo_1-0000.params`, `model_algo_1-symbol.json` and `hyperparams.json`. The network
is mxnet-ssd's; the symbol says which one it is, which anchors it has and how it detects.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ssd_jax.errors import UserError
from ssd_jax.files import file_digest, is_apple_double
from ssd_jax.ops.anchors import AnchorLevel
from ssd_jax.ops.boxes import VARIANCES
from ssd_jax.weights.archive import read_archive
from ssd_jax.weights.mxnet_params import parse_mxnet_params
from ssd_jax.weights.readers import WeightFile

# A larger file is not a detector, but may be meant to exhaust the memory.
_LARGEST_JSON = 2**26
_MOST_CLASSES = 10_000
_LARGEST_IMAGE = 4096
# A layer that only this network of mxnet-ssd has -> the settings that describe the network.
_NETWORKS = {
    "stage4_unit3_conv3": {
        "model.backbone": "resnet50_v2",
        "model.extras": "mxnet",
        "anchors.layout": "mxnet",
    },
    "multi_feat_2_conv_1x1_conv": {
        "model.backbone": "vgg16",
        "model.extras": "mxnet",
        "anchors.layout": "mxnet",
    },
    "conv8_2": {
        "model.backbone": "vgg16",
        "model.extras": "paper",
        "anchors.layout": "mxnet_legacy",
    },
}


class Artefact(NamedTuple):
    """The content of an artefact.

    `settings` are the settings of the config that the recipe "sagemaker" leaves to the artefact.
    `levels` are the anchors in the symbol, one level for each feature map.
    """

    weights: WeightFile
    num_classes: int
    levels: tuple[AnchorLevel, ...]
    settings: dict[str, object]


class Node(NamedTuple):
    """An operator of the symbol, with its arguments as text."""

    op: str
    name: str
    arguments: Mapping[str, str]


def read_artefact(path: str | os.PathLike) -> Artefact:
    """Read a `model.tar.gz`; the arrays stay in a mapped file until they are copied.

    Raises UserError if a part is missing or damaged, or if the symbol is not one of SageMaker's
    detectors or needs something that is not implemented here.
    """
    path = os.fspath(path)
    members = read_archive(path)
    params, symbol, hyperparams = (
        _only(members, ending, path) for ending in (".params", "-symbol.json", "hyperparams.json")
    )
    try:
        nodes, hyper = _nodes(_json(symbol)), dict(_json(hyperparams))
        levels, num_classes = _heads(nodes)
        settings = _settings(nodes, hyper)
        counted = int(hyper.get("num_classes", num_classes))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    # Valid JSON may still have wrong keys, types and values.
    except (
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path}: its symbol or hyperparams.json cannot be read ({error!r}). Expected the "
            "model.tar.gz of a SageMaker Object Detection job."
        ) from error
    if counted != num_classes:
        raise UserError(
            f"{path}: hyperparams.json says {counted} classes, but the symbol has {num_classes}. "
            "Use files of the same job."
        )
    tensors = parse_mxnet_params(params, f"{path} (.params)")
    return Artefact(
        WeightFile(path, tensors, {"sha256": file_digest(path)}), num_classes, levels, settings
    )


def _only(members: Mapping[str, memoryview], ending: str, path: str) -> memoryview:
    found = [name for name in members if name.endswith(ending) and not is_apple_double(name)]
    if len(found) != 1:
        raise UserError(
            f"{path}: got {len(found)} files called *{ending} among {sorted(members)}, expected "
            "one. Give the model.tar.gz of a SageMaker Object Detection job."
        )
    return members[found[0]]


def _json(text: memoryview) -> object:
    if len(text) > _LARGEST_JSON:
        raise UserError(f"a JSON file has {len(text)} bytes, expected some hundred kB.")
    return json.loads(bytes(text))


def _nodes(symbol: dict) -> list[Node]:
    """The operators in the symbol's order, in which inputs come before their users."""
    return [
        # The key had three names in the history of MXNet.
        Node(
            node["op"],
            node["name"],
            node.get("attrs") or node.get("attr") or node.get("param") or {},
        )
        for node in symbol["nodes"]
        if node["op"] != "null"
    ]


def _heads(nodes: Sequence[Node]) -> tuple[tuple[AnchorLevel, ...], int]:
    """The anchors of every feature map, and the number of classes without background."""
    filters = {
        node.name: int(node.arguments["num_filter"]) for node in nodes if node.op == "Convolution"
    }
    levels, channels = [], set()
    for node in nodes:
        if node.op == "_contrib_MultiBoxPrior":
            level = _level(node.arguments)
            feature = node.name.removesuffix("_anchors")
            levels.append(level)
            channels.add(filters[f"{feature}_cls_pred_conv"] / level.anchors_per_cell)
    if len(channels) != 1 or not 2 <= max(channels) <= _MOST_CLASSES:
        raise UserError(
            f"the class heads of the symbol have {sorted(channels)[:10]} channels per anchor, "
            f"expected one number from 2 to {_MOST_CLASSES}. It is not a detector of SageMaker."
        )
    return tuple(levels), int(channels.pop()) - 1


def _level(arguments: Mapping[str, str]) -> AnchorLevel:
    if _flag(arguments, "clip", "False"):
        raise UserError("the symbol clips its anchors, expected no clipping as in SageMaker.")
    sizes, ratios = _numbers(arguments["sizes"]), _numbers(arguments["ratios"])
    if not sizes or not ratios or min(sizes + ratios) <= 0:
        raise UserError(
            f"the anchors have sizes {sizes} and ratios {ratios}; expected some of each."
        )
    steps = _pair(arguments.get("steps", "(-1.0, -1.0)"))
    return AnchorLevel(
        sizes=sizes,
        ratios=ratios,
        steps=None if min(steps) <= 0 else steps,
        offsets=_pair(arguments.get("offsets", "(0.5, 0.5)")),
    )


def _settings(nodes: Sequence[Node], hyper: Mapping[str, str]) -> dict[str, object]:
    image_size = int(hyper["image_shape"])
    if image_size > _LARGEST_IMAGE:
        raise UserError(f"image_shape is {image_size}, expected at most {_LARGEST_IMAGE}.")
    return {
        **_network(nodes),
        "model.image_size": image_size,
        **_batch_norm(nodes),
        **_detection(_one(nodes, "_contrib_MultiBoxDetection")),
        # For the evaluation; the IoU threshold of matching is fixed at 0.5 in a job's symbol.
        "evaluate.iou_threshold": float(hyper.get("overlap_threshold", 0.5)),
    }


def _network(nodes: Sequence[Node]) -> dict[str, object]:
    names = {node.name for node in nodes}
    for layer, settings in _NETWORKS.items():
        if layer in names:
            return settings
    raise UserError(
        f"the network of the symbol is not known: it has none of the layers {', '.join(_NETWORKS)}."
        " Expected a ResNet-50 or VGG-16 detector of SageMaker or mxnet-ssd."
    )


def _batch_norm(nodes: Sequence[Node]) -> dict[str, object]:
    norms = [node for node in nodes if node.op == "BatchNorm"]
    if not norms:
        return {"model.batch_norm": "none"}
    # MXNet's defaults for what the symbol leaves out.
    kinds = {
        (
            float(node.arguments.get("eps", 1e-3)),
            float(node.arguments.get("momentum", 0.9)),
            _flag(node.arguments, "use_global_stats", "False"),
            _flag(node.arguments, "fix_gamma", "True") == (node.name == "bn_data"),
        )
        for node in norms
    }
    if len(kinds) != 1 or not next(iter(kinds))[-1]:
        raise UserError(
            "the BatchNorm layers of the symbol differ, or their fix_gamma is not as in mxnet-ssd "
            f"(for bn_data only): got (eps, momentum, use_global_stats, as expected) {kinds}."
        )
    epsilon, momentum, frozen, _ = kinds.pop()
    return {
        "model.batch_norm": "frozen" if frozen else "batch",
        "model.batch_norm_epsilon": epsilon,
        "model.batch_norm_momentum": momentum,
    }


def _detection(node: Node) -> dict[str, object]:
    arguments = node.arguments
    kept = int(arguments.get("nms_topk", -1))
    variances = _numbers(arguments.get("variances", str(VARIANCES)))
    if kept <= 0 or variances != VARIANCES or not _flag(arguments, "clip", "True"):
        raise UserError(
            f"the detection of the symbol has nms_topk {kept}, variances {variances} and clip "
            f"{arguments.get('clip', 'True')}; expected an nms_topk above 0, {VARIANCES} and True."
        )
    return {
        "detect.score_threshold": float(arguments.get("threshold", 0.01)),
        "detect.iou_threshold": float(arguments.get("nms_threshold", 0.5)),
        "detect.force_suppress": _flag(arguments, "force_suppress", "False"),
        "detect.candidates": kept,
        "detect.max_detections": kept,
        "detect.class_per_anchor": "best",
    }


def _one(nodes: Sequence[Node], op: str) -> Node:
    found = [node for node in nodes if node.op == op]
    if len(found) != 1:
        raise UserError(f"the symbol has {len(found)} operators {op}, expected one.")
    return found[0]


def _flag(arguments: Mapping[str, str], name: str, default: str) -> bool:
    return {"True": True, "1": True, "False": False, "0": False}[arguments.get(name, default)]


def _pair(text: str) -> tuple[float, float]:
    first, second = _numbers(text)
    return first, second


def _numbers(text: str) -> tuple[float, ...]:
    """Reads "(1,2,0.5)"."""
    numbers = tuple(float(part) for part in text.strip("()[] ").split(",") if part.strip())
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(text)
    return numbers
