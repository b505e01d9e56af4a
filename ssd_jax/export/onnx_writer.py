"""A convolutional network in JAX -> ONNX, from its jaxpr.

The networks here are made of some twenty primitives, so this is shorter than what a general
converter takes to be set up, and the graph comes out as the runtimes like it: what depends on
weights alone is computed here, and feature maps lie channels first throughout, as ONNX convolutions
have them.
docs/export.md says why jax2onnx is not used.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.extend
import numpy as np

from ssd_jax.errors import UserError

OPSET = 18
_IR_VERSION = 8  # the one that came with opset 18; older runtimes refuse later ones
# The size of the batch that is traced; every array has it as its first axis. A name for it, as
# jax.export has them, would make a gather of each slice.
_TRACED = 2
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # axes of feature maps: channels first, and last


def to_onnx(
    function: Callable, shape: Sequence[int], *, input_name: str, output_names: Sequence[str]
) -> bytes:
    """The ONNX model of `function(images) -> outputs`, float32, for batches of any size.

    `shape` is that of one image, (height, width, channels); all arrays of the model have channels
    last. Raises UserError where the extra is missing or the function uses another primitive.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "ONNX needs the package onnx, which is not installed. Install the extra: "
            "pip install 'ssd-jax[onnx]'."
        ) from error
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((_TRACED, *shape), np.float32))
    graph = _Graph(onnx.helper, onnx.numpy_helper)
    (images,) = closed.jaxpr.invars
    values = graph.inline(closed.jaxpr, closed.consts, [_Unturned(input_name)])
    for name, value, variable in zip(output_names, values, closed.jaxpr.outvars, strict=True):
        value = graph.channels_last(graph.turned(value), len(variable.aval.shape))
        graph.nodes.append(onnx.helper.make_node("Identity", [value], [name]))

    def described(name, variable):
        sides = ["batch", *variable.aval.shape[1:]]
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides)

    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "ssd_jax",
            [described(input_name, images)],
            list(map(described, output_names, closed.jaxpr.outvars)),
            graph.initializers,
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="ssd_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Unturned(NamedTuple):
    """The input, and what arithmetic makes of it, while it has its channels last.

    A runtime that computes in bfloat16 rounds what it turns: grey levels up to 255 by half of one.
    Normalised before, they lose next to nothing.
    """

    name: str


class _Graph:
    """Nodes and weights as they are added; a value is a NumPy array or the name of a tensor.

    Tensors of four axes lie channels first, but those that are `_Unturned`; arrays lie as JAX has
    them until a node takes them.
    """

    def __init__(self, helper, numpy_helper):
        self.nodes, self.initializers = [], []
        self._helper, self._numpy_helper = helper, numpy_helper

    def inline(self, jaxpr, consts, inputs):
        """The values that the jaxpr gives for these inputs."""
        values = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        values |= dict(zip(jaxpr.invars, inputs, strict=True))

        def value(atom):
            if isinstance(atom, jax.extend.core.Literal):
                return np.asarray(atom.val)
            return values[atom]

        for eqn in jaxpr.eqns:
            results = self._equation(eqn, [value(atom) for atom in eqn.invars])
            values |= dict(zip(eqn.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, inputs):
        called = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if called is not None:
            return self.inline(called.jaxpr, called.consts, inputs)
        if eqn.primitive.name == "platform_index":  # the last branch is that of no platform
            return [np.asarray(len(eqn.params["platforms"]) - 1)]
        if eqn.primitive.name == "cond" and isinstance(inputs[0], np.ndarray):
            branch = eqn.params["branches"][int(inputs[0])]
            return self.inline(branch.jaxpr, branch.consts, inputs[1:])
        if all(isinstance(each, np.ndarray) for each in inputs):
            return [np.asarray(eqn.primitive.bind(*inputs, **eqn.params))]
        kinds = {type(each) for each in inputs}
        if eqn.primitive.name in _ARITHMETIC and kinds == {_Unturned, np.ndarray}:
            operands = [x.name if isinstance(x, _Unturned) else x for x in inputs]
            return [_Unturned(self.add(_ARITHMETIC[eqn.primitive.name], *operands))]
        rule = _RULES.get(eqn.primitive.name)
        if rule is None:
            raise UserError(
                f"ONNX: the network uses {eqn.primitive.name}, which cannot be written. Leave out "
                "--onnx."
            )
        return [rule(self, eqn, *map(self.turned, inputs))]

    def add(self, op, *inputs, **attributes):
        """Adds a node, and its weights, and gives the name of its output."""
        names = [x if isinstance(x, str) else self._weight(x) for x in inputs]
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(self._helper.make_node(op, names, [output], **attributes))
        return output

    def _weight(self, array):
        name = f"weight_{len(self.initializers)}"
        self.initializers.append(self._numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def turned(self, value):
        """The value, with its channels first where it is the input."""
        return self.channels_first(value.name, 4) if isinstance(value, _Unturned) else value

    def channels_last(self, tensor, rank):
        """A tensor as JAX has it."""
        return self.add("Transpose", tensor, perm=_LAST) if rank == 4 else tensor

    def channels_first(self, tensor, rank):
        """A tensor that lies as JAX has it, as tensors lie here."""
        return self.add("Transpose", tensor, perm=_FIRST) if rank == 4 else tensor


def _elementwise(op):
    def rule(graph, eqn, *inputs):
        return graph.add(op, *map(_operand, inputs))

    return rule


def _operand(value):
    # An array has as many axes as the tensor that it meets, or none.
    return value.transpose(_FIRST) if np.ndim(value) == 4 else value


def _subtract(graph, eqn, left, right):
    # Runtimes merge multiplications and additions into a convolution, but no subtraction.
    if isinstance(right, np.ndarray):
        return graph.add("Add", left, _operand(-right))
    return graph.add("Sub", _operand(left), right)


def _maximum(graph, eqn, left, right):
    if isinstance(right, np.ndarray) and not right.any():
        return graph.add("Relu", left)
    return graph.add("Max", _operand(left), _operand(right))


def _convolution(graph, eqn, images, kernel):
    words = eqn.params
    numbers = words["dimension_numbers"]
    _expect(
        eqn, isinstance(kernel, np.ndarray) and tuple(numbers) == (_FIRST, (3, 2, 0, 1), _FIRST)
    )
    _expect(eqn, words["lhs_dilation"] == (1, 1) and words["batch_group_count"] == 1)
    return graph.add(
        "Conv",
        images,
        kernel.transpose(3, 2, 0, 1),
        strides=words["window_strides"],
        pads=_pads(words["padding"]),
        dilations=words["rhs_dilation"],
        group=words["feature_group_count"],
    )


def _max_pool(graph, eqn, images):
    words = eqn.params
    (one, *window, last), strides, padding = (
        words[name] for name in ("window_dimensions", "window_strides", "padding")
    )
    _expect(eqn, len(window) == 2 and one == last == strides[0] == strides[3] == 1)
    _expect(eqn, padding[0] == padding[3] == (0, 0))
    _expect(eqn, {*words["base_dilation"], *words["window_dilation"]} == {1})
    return graph.add(
        "MaxPool", images, kernel_shape=window, strides=strides[1:3], pads=_pads(padding[1:3])
    )


def _pads(padding):
    return [low for low, _ in padding] + [high for _, high in padding]


def _reduce(op):
    def rule(graph, eqn, tensor):
        rank = len(eqn.invars[0].aval.shape)
        _expect(eqn, tuple(eqn.params["axes"]) == (rank - 1,))
        # What is left of a feature map has its axes in the order in which JAX has them.
        return graph.add(op, tensor, np.array([1 if rank == 4 else rank - 1]), keepdims=0)

    return rule


def _reshape(graph, eqn, tensor):
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    _expect(eqn, before[0] == after[0] == _TRACED)
    flat = graph.channels_last(tensor, len(before))
    return graph.channels_first(graph.add("Reshape", flat, np.array([-1, *after[1:]])), len(after))


def _broadcast(graph, eqn, tensor):
    """Only new axes of length 1: everything else ONNX does by itself where it is needed."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    kept = eqn.params["broadcast_dimensions"]
    new = [axis for axis in range(len(after)) if axis not in kept]
    _expect(eqn, tuple(after[axis] for axis in kept) == before)
    _expect(eqn, all(after[axis] == 1 for axis in new))
    wider = graph.add("Unsqueeze", graph.channels_last(tensor, len(before)), np.array(new))
    return graph.channels_first(wider, len(after))


def _concatenate(graph, eqn, *tensors):
    axis, rank = eqn.params["dimension"], len(eqn.outvars[0].aval.shape)
    return graph.add(
        "Concat", *map(_operand, tensors), axis=_FIRST.index(axis) if rank == 4 else axis
    )


def _slice(graph, eqn, tensor):
    words, rank = eqn.params, len(eqn.outvars[0].aval.shape)
    after, before = eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape
    cut = [axis for axis in range(rank) if after[axis] != before[axis]]
    _expect(eqn, words["strides"] is None)
    starts, stops = ([words[name][axis] for axis in cut] for name in
                     ("start_indices", "limit_indices"))  # fmt: skip
    return graph.add("Slice", tensor, np.array(starts), np.array(stops), _axes(cut, rank))


def _reverse(graph, eqn, tensor):
    axes = _axes(eqn.params["dimensions"], len(eqn.outvars[0].aval.shape))
    last, before_first = np.full(len(axes), -1), np.full(len(axes), np.iinfo(np.int64).min)
    return graph.add("Slice", tensor, last, before_first, axes, last)


def _axes(axes, rank):
    """The axes of a tensor that lie here where these lie in JAX."""
    return np.array([_FIRST.index(axis) if rank == 4 else axis for axis in axes])


def _expect(eqn, holds):
    if not holds:
        raise UserError(
            f"ONNX: the network uses {eqn.primitive.name} in a way that cannot be written. Leave "
            "out --onnx."
        )


_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
_RULES = {name: _elementwise(op) for name, op in _ARITHMETIC.items()} | {
    "sub": _subtract,
    "max": _maximum,
    "exp": _elementwise("Exp"),
    "logistic": _elementwise("Sigmoid"),
    "slice": _slice,
    "rev": _reverse,
    "square": lambda graph, eqn, tensor: graph.add("Mul", tensor, tensor),
    "rsqrt": lambda graph, eqn, tensor: graph.add("Reciprocal", graph.add("Sqrt", tensor)),
    "stop_gradient": lambda graph, eqn, tensor: tensor,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _max_pool,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
}
