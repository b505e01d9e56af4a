"""A convolutional network in JAX -> ONNX, from its jaxpr.

The networks here use about twenty primitives, so this is shorter than setting up a general
converter, and the graph suits the runtimes: values that depend only on weights are computed here,
and feature maps have their channels first throughout, as in ONNX convolutions.
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
# The batch size that is traced; every array has it as its first axis. A symbolic size, as in
# jax.export, would turn each slice into a gather.
_TRACED = 2
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # axes of feature maps: channels first, and last


def to_onnx(
    function: Callable, shape: Sequence[int], *, input_name: str, output_names: Sequence[str]
) -> bytes:
    """The ONNX model of `function(images) -> outputs`, float32, for batches of any size.

    `shape` is that of one image, (height, width, channels); all arrays of the model have channels
    last. Raises UserError if the extra is missing or the function uses an unsupported primitive.
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
    """The input, also after arithmetic, while its channels are still last.

    A runtime that computes in bfloat16 rounds what it transposes, pixel values near 255 by up to
    half a unit. Transposed after normalisation, they lose almost nothing.
    """

    name: str


class _Graph:
    """The nodes and weights added so far; a value is a NumPy array or the name of a tensor.

    Tensors of four axes have their channels first, except those that are `_Unturned`; arrays have
    JAX's layout until they are added to a node.
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
        if eqn.primitive.name == "platform_index":  # the last branch is the default
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
        """The value; an `_Unturned` one with its channels first."""
        return self.channels_first(value.name, 4) if isinstance(value, _Unturned) else value

    def channels_last(self, tensor, rank):
        """A tensor in JAX's layout."""
        return self.add("Transpose", tensor, perm=_LAST) if rank == 4 else tensor

    def channels_first(self, tensor, rank):
        """A tensor that is in JAX's layout, in the layout of this graph."""
        return self.add("Transpose", tensor, perm=_FIRST) if rank == 4 else tensor


def _elementwise(op):
    def rule(graph, eqn, *inputs):
        return graph.add(op, *map(_operand, inputs))

    return rule


def _operand(value):
    # An array has as many axes as the tensor that it is combined with, or none.
    return value.transpose(_FIRST) if np.ndim(value) == 4 else value


def _subtract(graph, eqn, left, right):
    # Runtimes merge multiplications and additions into a convolution, but not subtractions.
    if isinstance(right, np.ndarray):
        return graph.add("Add", left, _operand(-right))
    return graph.add("Sub", _operand(left), right)


def _maximum(graph, eqn, left, right):
    if isinstance(right, np.ndarray) and not right.any():
        return graph.add("Relu", left)
    return graph.add("Max", _operand(left), _operand(right))


def _convolution(graph, eqn, images, kernel):
    params = eqn.params
    numbers = params["dimension_numbers"]
    _expect(
        eqn, isinstance(kernel, np.ndarray) and tuple(numbers) == (_FIRST, (3, 2, 0, 1), _FIRST)
    )
    _expect(eqn, params["lhs_dilation"] == (1, 1) and params["batch_group_count"] == 1)
    return graph.add(
        "Conv",
        images,
        kernel.transpose(3, 2, 0, 1),
        strides=params["window_strides"],
        pads=_pads(params["padding"]),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )


def _max_pool(graph, eqn, images):
    params = eqn.params
    (one, *window, last), strides, padding = (
        params[name] for name in ("window_dimensions", "window_strides", "padding")
    )
    _expect(eqn, len(window) == 2 and one == last == strides[0] == strides[3] == 1)
    _expect(eqn, padding[0] == padding[3] == (0, 0))
    _expect(eqn, {*params["base_dilation"], *params["window_dilation"]} == {1})
    return graph.add(
        "MaxPool", images, kernel_shape=window, strides=strides[1:3], pads=_pads(padding[1:3])
    )


def _pads(padding):
    return [low for low, _ in padding] + [high for _, high in padding]


def _reduce(op):
    def rule(graph, eqn, tensor):
        rank = len(eqn.invars[0].aval.shape)
        _expect(eqn, tuple(eqn.params["axes"]) == (rank - 1,))
        # A reduced feature map has its axes in JAX's order.
        return graph.add(op, tensor, np.array([1 if rank == 4 else rank - 1]), keepdims=0)

    return rule


def _reshape(graph, eqn, tensor):
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    _expect(eqn, before[0] == after[0] == _TRACED)
    flat = graph.channels_last(tensor, len(before))
    return graph.channels_first(graph.add("Reshape", flat, np.array([-1, *after[1:]])), len(after))


def _broadcast(graph, eqn, tensor):
    """Only adds axes of length 1, because ONNX broadcasts everything else by itself."""
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
    params, rank = eqn.params, len(eqn.outvars[0].aval.shape)
    after, before = eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape
    cut = [axis for axis in range(rank) if after[axis] != before[axis]]
    _expect(eqn, params["strides"] is None)
    starts, stops = ([params[name][axis] for axis in cut] for name in
                     ("start_indices", "limit_indices"))  # fmt: skip
    return graph.add("Slice", tensor, np.array(starts), np.array(stops), _axes(cut, rank))


def _reverse(graph, eqn, tensor):
    axes = _axes(eqn.params["dimensions"], len(eqn.outvars[0].aval.shape))
    last, before_first = np.full(len(axes), -1), np.full(len(axes), np.iinfo(np.int64).min)
    return graph.add("Slice", tensor, last, before_first, axes, last)


def _axes(axes, rank):
    """The axes of this graph's layout for axes of JAX's layout."""
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
