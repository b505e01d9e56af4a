"""Initial values of the variables, made on the host.

Compiling `model.init` of VGG16 takes half a minute on a CPU; tracing its shapes and filling them
with NumPy takes less than a second.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from ssd_jax.models.layers import TRACED_INIT, GroupedBatchNorm, L2Normalize
from ssd_jax.models.ssd import SSD


def variable_shapes(model: SSD, image_size: int) -> dict[str, dict]:
    """The tree of `init_variables` with a `jax.ShapeDtypeStruct` at each leaf."""
    return jax.eval_shape(_linen_variables(model, image_size), jax.random.key(0))


def init_variables(model: SSD, image_size: int, *, seed: int) -> dict[str, dict]:
    """Make {"params", "batch_stats"} as NumPy arrays, each a function of (seed, path).

    Kernels of the backbone are He normal by fan-in, those of the other layers Xavier uniform as in
    the paper. `batch_stats` is empty without BatchNorm. Class heads whose activation is "sigmoid"
    start at a score of 0.01, so that the many negatives do not dominate at first (Lin et al. 2017,
    arXiv:1708.02002, section 4.1). This applies to the layers of this package; other modules keep
    their own initialisers.
    """
    layers: dict[tuple[str, ...], nn.Module] = {}

    def note(call, args, kwargs, context):
        if _has_rule(context.module):
            layers[context.module.path] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes = variable_shapes(model, image_size)
    values, others = {}, []
    for path, leaf in traverse_util.flatten_dict(shapes, keep_empty_nodes=True).items():
        if leaf is traverse_util.empty_node:
            values[path] = leaf
        elif layer := layers.get(path[1:-1]):
            values[path] = _first_value(layer, path, leaf.shape, seed)
        else:
            others.append(path)
    values |= _own_values(model, image_size, others, seed)
    variables = traverse_util.unflatten_dict(values)
    if model.heads.class_activation == "sigmoid":
        for name, layer in variables["params"]["heads"].items():
            if name.startswith("class_"):
                layer["bias"] = np.full_like(layer["bias"], -np.log(99))
    return variables


def unit_output_factors(
    model: SSD,
    variables: dict[str, dict],
    layers: Sequence[str],
    images: Float[np.ndarray, "B S S 3"],
) -> dict[str, float]:
    """Factors for the kernels of backbone layers that bring the RMS of each output near 1.

    The factors are powers of two: exact, and almost never different on another machine. Layers are
    scaled in the order given, after LSUV (Mishkin and Matas 2016, arXiv:1511.06422), so the first
    one after the pretrained layers gets nearly all of the factor. Sharing it evenly, which computes
    the same at first, was tried: gradients were smaller and the losses similar, but mAP rose later
    (experiments/voc300/README.md). This is for random layers on top of pretrained ones. The
    activations of Caffe's VGG16 are in the hundreds; after random layers the initial loss is many
    times log(classes), and the fastest way to lower it is to kill the channels of the pretrained
    layers, most of which were still dead 500 steps later (experiments/voc300/README.md).
    """

    @jax.jit
    def answers(variables, images):
        _, state = model.apply(
            variables,
            images,
            train=False,
            method=lambda model, images, **options: model.backbone(images, **options),
            capture_intermediates=lambda module, name: name == "__call__" and module.name in layers,
            mutable=["intermediates"],
        )
        found = state["intermediates"]["backbone"]
        return {
            layer: jnp.sqrt(jnp.mean(jnp.square(found[layer]["__call__"][0].astype(jnp.float32))))
            for layer in layers
        }

    factors = {}
    for layer in layers:
        rms = float(answers(scale_kernels(variables, factors), images)[layer])
        factors[layer] = 2.0 ** -round(np.log2(rms)) if 0 < rms < np.inf else 1.0
    return factors


def scale_kernels(variables: dict[str, dict], factors: Mapping[str, float]) -> dict[str, dict]:
    """The variables with the kernels of backbone layers multiplied by their factors."""
    backbone = dict(variables["params"]["backbone"])
    for layer, factor in factors.items():
        kernel = backbone[layer]["kernel"] * np.float32(factor)
        backbone[layer] = {**backbone[layer], "kernel": kernel}
    return {**variables, "params": {**variables["params"], "backbone": backbone}}


def _linen_variables(model: SSD, image_size: int) -> Callable[[Array], dict[str, dict]]:
    def variables(key):
        images = jnp.zeros((1, image_size, image_size, 3))
        made = model.init(key, images, train=False)
        return {"params": made["params"], "batch_stats": made.get("batch_stats", {})}

    return variables


def _own_values(
    model: SSD, image_size: int, paths: Sequence[tuple[str, ...]], seed: int
) -> dict[tuple[str, ...], np.ndarray]:
    """Linen's initial values of the leaves at `paths`, compiled without the rest of the network."""
    if not paths:
        return {}
    variables = _linen_variables(model, image_size)

    def leaves(key):
        flat = traverse_util.flatten_dict(variables(key))
        return [flat[path] for path in paths]

    made = jax.device_get(jax.jit(leaves)(jax.random.key(seed)))
    return dict(zip(paths, made, strict=True))


def _has_rule(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv):
        return module.kernel_init is TRACED_INIT
    return isinstance(module, GroupedBatchNorm | L2Normalize)


def _first_value(
    layer: nn.Module, path: tuple[str, ...], shape: tuple[int, ...], seed: int
) -> Float[np.ndarray, "..."]:
    match path[-1]:
        case "kernel":
            rng = np.random.default_rng((seed, zlib.crc32("/".join(path).encode())))
            return _he_normal(rng, shape) if "backbone" in path else _xavier_uniform(rng, shape)
        case "scale":
            return np.full(shape, layer.initial_scale, np.float32)
        case "var":
            return np.ones(shape, np.float32)
        case _:  # a bias or a mean
            return np.zeros(shape, np.float32)


def _he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """He et al. 2015, arXiv:1502.01852, equation 10."""
    fan_in = np.prod(shape[-4:-1])  # before them is the axis of `nn.scan`, if any
    scale = np.float32(np.sqrt(2 / fan_in))
    return scale * rng.standard_normal(shape, dtype=np.float32)


def _xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Glorot and Bengio 2010, equation 16."""
    height, width, inputs, outputs = shape[-4:]
    limit = np.float32(np.sqrt(6 / (height * width * (inputs + outputs))))
    return limit * (2 * rng.random(shape, dtype=np.float32) - 1)
