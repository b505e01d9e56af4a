"""First values of the variables, made on the host.

Compiling `model.init` of VGG16 takes half a minute on a CPU; tracing its shapes and filling them
with NumPy takes less than a second.
"""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from ssd_jax.models.ssd import SSD


def variable_shapes(model: SSD, image_size: int) -> dict[str, dict]:
    """The tree of `init_variables` with a `jax.ShapeDtypeStruct` at each leaf."""
    shapes = jax.eval_shape(
        lambda key, images: model.init(key, images, train=False),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32),
    )
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def init_variables(model: SSD, image_size: int, *, seed: int) -> dict[str, dict]:
    """Give {"params", "batch_stats"} as float32 NumPy arrays, a function of (seed, path) each.

    Kernels of the backbone are He normal by fan-in, those of the other layers Xavier uniform as in
    the paper; an own backbone has the values of its own initialisers. `batch_stats` is empty
    without BatchNorm. Class heads whose activation is "sigmoid" begin at a score of 0.01, so that
    the many negatives do not drown the rest at first (Lin et al. 2017, arXiv:1708.02002, section
    4.1).
    """
    own = _own_values(model.backbone, image_size, seed) if model.own_backbone else {}

    def first_value(path, leaf):
        names = tuple(entry.key for entry in path)
        return own[names] if names in own else _first_value(names, leaf.shape, seed)

    variables = jax.tree_util.tree_map_with_path(first_value, variable_shapes(model, image_size))
    if model.heads.class_activation == "sigmoid":
        for name, layer in variables["params"]["heads"].items():
            if name.startswith("class_"):
                layer["bias"] = np.full_like(layer["bias"], -np.log(99))
    return variables


def scale_to_unit_outputs(
    model: SSD,
    variables: dict[str, dict],
    layers: Sequence[str],
    images: Float[np.ndarray, "B S S 3"],
) -> tuple[dict[str, dict], dict[str, float]]:
    """Scale the kernels of layers of the backbone so that each answers `images` with an RMS near 1.

    Give the variables, and the factors by layer, which are powers of two: exact, and hardly ever
    others on another machine. Layers are scaled in the order given, after LSUV (Mishkin and Matas
    2016, arXiv:1511.06422), so the first, which sees the pretrained ones, has nearly all of the
    factor. Sharing it evenly, which computes the same at first, was tried: gradients were smaller
    and the losses alike, but mAP came later (experiments/voc300/README.md). It is for random layers
    above pretrained ones. Those of Caffe's VGG16 answer in hundreds; what random layers make of
    that gives a first loss of many times log(classes), and the quickest way down is to silence the
    pretrained layers, most of which were still silent 500 steps later (docs/weights.md).
    """

    @jax.jit
    def answers(variables, images):
        _, state = model.apply(
            variables,
            images,
            train=False,
            method=lambda model, images, **words: model.backbone(images, **words),
            capture_intermediates=lambda module, name: name == "__call__" and module.name in layers,
            mutable=["intermediates"],
        )
        found = state["intermediates"]["backbone"]
        return {
            layer: jnp.sqrt(jnp.mean(jnp.square(found[layer]["__call__"][0].astype(jnp.float32))))
            for layer in layers
        }

    backbone, factors = dict(variables["params"]["backbone"]), {}
    for layer in layers:
        scaled = {**variables, "params": {**variables["params"], "backbone": backbone}}
        rms = float(answers(scaled, images)[layer])
        factors[layer] = 2.0 ** -round(np.log2(rms)) if 0 < rms < np.inf else 1.0
        kernel = backbone[layer]["kernel"] * np.float32(factors[layer])
        backbone[layer] = {**backbone[layer], "kernel": kernel}
    return {**variables, "params": {**variables["params"], "backbone": backbone}}, factors


def _own_values(
    backbone: nn.Module, image_size: int, seed: int
) -> dict[tuple[str, ...], Float[np.ndarray, "..."]]:
    """What an own backbone begins with, by path; its forward pass is not computed."""
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    values = backbone.lazy_init(jax.random.key(seed), images, train=False)
    inside = {collection: {"backbone": tree} for collection, tree in values.items()}
    return {path: np.asarray(value) for path, value in flatten_dict(inside).items()}


def _first_value(
    path: tuple[str, ...], shape: tuple[int, ...], seed: int
) -> Float[np.ndarray, "..."]:
    match path:
        case (*_, "kernel"):
            rng = np.random.default_rng((seed, zlib.crc32("/".join(path).encode())))
            return _he_normal(rng, shape) if "backbone" in path else _xavier_uniform(rng, shape)
        case (*_, "conv4_3_norm", "scale"):
            return np.full(shape, 20.0, np.float32)
        case (*_, "conv3_bn", "scale"):
            # A residual block begins as its shortcut: arXiv:1706.02677, section 5.1.
            return np.zeros(shape, np.float32)
        case (*_, "scale" | "var"):
            return np.ones(shape, np.float32)
        case (*_, "bias" | "mean"):
            return np.zeros(shape, np.float32)
    raise ValueError(f"no first value is defined for {'/'.join(path)}")


def _he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """He et al. 2015, arXiv:1502.01852, equation 10."""
    scale = np.float32(np.sqrt(2 / np.prod(shape[:-1])))
    return scale * rng.standard_normal(shape, dtype=np.float32)


def _xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Glorot and Bengio 2010, equation 16."""
    height, width, inputs, outputs = shape
    limit = np.float32(np.sqrt(6 / (height * width * (inputs + outputs))))
    return limit * (2 * rng.random(shape, dtype=np.float32) - 1)
