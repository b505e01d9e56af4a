"""How fast a program could run: what it must compute and move, kernel by kernel.

Kernels are told as XLA makes them on an accelerator: a convolution, a matrix product, a sort or a
pooling is one; what lies between, arithmetic and reductions, is fused into one for each array that
has to be written. A kernel takes as long as its arithmetic or its memory traffic, whichever is
longer (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785). The arithmetic of fused
kernels is left out, and nothing stays in a cache between two kernels.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

# What a program may be inside of, as `jax.named_scope` in the step and in the prediction says.
STAGES = ("augment", "network", "loss", "match", "mine", "optimizer", "resize", "detect", "nms")

# The same bytes under another name. A convolution's gradient reads its kernel backwards for free.
_ALIASES = {"pvary", "pcast", "copy", "copy_p", "stop_gradient", "sharding_constraint", "reshape",
            "squeeze", "bitcast_convert_type", "optimization_barrier", "rev"}  # fmt: skip
# Read as much of their operand as they write.
_SLICES = {"slice", "dynamic_slice", "gather", "split", "unstack"}
_ALONE = {"conv_general_dilated", "dot_general", "sort", "top_k", "concatenate", "stack", "fft",
          "dynamic_update_slice"}  # fmt: skip
_ALONE_PREFIXES = ("reduce_window", "select_and_", "scatter", "cum", "psum", "pmax", "ppermute",
                   "all_gather", "reduce_scatter", "all_to_all", "ffi_call")  # fmt: skip
_REDUCTIONS = ("reduce_", "argmax", "argmin")


class Kernel(NamedTuple):
    """`count` launches of one kernel; operations and bytes are those of one of them."""

    scope: str
    kind: str
    operations: int
    bytes: int
    count: int = 1

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least time at `peak` operations and `bandwidth` bytes a second."""
        return self.count * max(self.operations / peak, self.bytes / bandwidth)


def roofline_seconds(kernels: Iterable[Kernel], *, peak: float, bandwidth: float) -> float:
    """The least time of a program."""
    return sum(kernel.seconds(peak, bandwidth) for kernel in kernels)


def operations(kernels: Iterable[Kernel]) -> int:
    """Multiplications and additions of convolutions and matrix products."""
    return sum(kernel.count * kernel.operations for kernel in kernels)


def traffic(kernels: Iterable[Kernel]) -> int:
    """Bytes read and written."""
    return sum(kernel.count * kernel.bytes for kernel in kernels)


def grouped(
    kernels: Iterable[Kernel], key: Callable[[Kernel], Hashable]
) -> dict[Hashable, list[Kernel]]:
    """The kernels by `key(kernel)`, in the order of first appearance."""
    groups = {}
    for kernel in kernels:
        groups.setdefault(key(kernel), []).append(kernel)
    return groups


def stage_of(kernel: Kernel) -> str:
    """The innermost of STAGES that a kernel belongs to, or "other"."""
    return next((n for n in reversed(_names(kernel.scope)) if n in STAGES), "other")


def layer_of(kernel: Kernel) -> str:
    """The layer of the network that a kernel belongs to, forward and backward, else its stage."""
    names = _names(kernel.scope)
    if "network" not in names:
        return stage_of(kernel)
    inside = [n for n in names[names.index("network") + 1 :] if "." not in n and n != "SSD"]
    return "/".join(inside) or "network"


def _names(scope: str) -> list[str]:
    return re.findall(r"(?<![\w.])(?!(?:jvp|transpose|vmap)\()[\w.]+", scope)


def program_kernels(jaxpr: Any) -> list[Kernel]:
    """The kernels of a `jax.core.ClosedJaxpr`, as `jax.make_jaxpr` and `jit(f).trace` give it.

    Inside `jax.shard_map` they are those of one device; outside, the arrays count as whole on each.
    What nothing needs is counted where it stands.
    A loop whose number of rounds is not known counts one round, a conditional its longest branch,
    and of `jax.lax.platform_dependent` the shortest, whatever the platform.
    """
    nodes: list[_Node] = []
    arguments = [_Array(_size(v)) for v in jaxpr.jaxpr.invars]
    results = _flatten(jaxpr.jaxpr, arguments, "", nodes)
    return _fuse(nodes, results)


@dataclasses.dataclass(eq=False)
class _Array:
    """`sources` are the arrays in memory that it is computed from, if it is not there itself."""

    bytes: int
    in_memory: bool = True
    sources: frozenset["_Array"] = frozenset()
    depth: int = 0
    uses: int = 0
    needed: bool = False  # in memory, by a kernel of its own or as a result

    def read(self) -> frozenset["_Array"]:
        return frozenset([self]) if self.in_memory else self.sources


class _Node(NamedTuple):
    name: str
    scope: str
    inputs: list[_Array]
    outputs: list[_Array]
    params: dict
    avals: tuple  # of the inputs and of the outputs
    inner: list[Kernel]


def _flatten(jaxpr, arguments, outer, nodes) -> list[_Array]:
    arrays = dict(zip(jaxpr.invars, arguments, strict=True))
    arrays |= {v: _Array(_size(v)) for v in jaxpr.constvars}

    def of(atom) -> _Array:
        return _Array(0) if hasattr(atom, "val") else arrays[atom]

    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [of(v) for v in eqn.invars]
        scope = "/".join(part for part in (outer, str(eqn.source_info.name_stack)) if part)
        body = next((b for b in _bodies(eqn) if len(b.invars) == len(inputs)), None)
        if name in _ALIASES:
            outputs = inputs[: len(eqn.outvars)]
        elif body is not None and name not in ("scan", "while", "cond"):
            outputs = _flatten(body, inputs, scope, nodes)
        else:
            outputs = [_Array(_size(v), in_memory=False) for v in eqn.outvars]
            avals = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
            inner = _inner_kernels(eqn, scope)
            nodes.append(_Node(name, scope, inputs, outputs, eqn.params, avals, inner))
        arrays.update(zip(eqn.outvars, outputs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _bodies(eqn) -> Iterator:
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def _inner_kernels(eqn, scope) -> list[Kernel]:
    """Of a loop or a conditional."""
    bodies = []
    for body in _bodies(eqn):
        nodes: list[_Node] = []
        results = _flatten(body, [_Array(_size(v)) for v in body.invars], scope, nodes)
        bodies.append(_fuse(nodes, results))
    if eqn.primitive.name == "cond":
        return (min if eqn.params.get("branches_platforms") else max)(bodies, key=traffic)
    rounds = eqn.params.get("length", 1)
    return [k._replace(count=k.count * rounds) for body in bodies for k in body]


def _size(variable) -> int:
    aval = variable.aval
    return math.prod(getattr(aval, "shape", ())) * getattr(
        getattr(aval, "dtype", None), "itemsize", 0
    )


def _is_alone(node: _Node) -> bool:
    return (
        bool(node.inner) or node.name in _ALONE | _SLICES or (node.name.startswith(_ALONE_PREFIXES))
    )


def _fuse(nodes: list[_Node], results: list[_Array]) -> list[Kernel]:
    for node in nodes:
        for array in set(node.inputs):
            array.uses += 1
            array.needed |= _is_alone(node)
    for array in results:
        array.needed = True
    kernels, fused = [], {}
    write = functools.partial(_write, kernels, fused)
    for node in nodes:
        if _is_alone(node):
            for array in node.inputs:
                write(array, node.scope)
            kernels += node.inner or [_alone(node)]
            depth = 1 + max((array.depth for array in node.inputs), default=0)
            for array in node.outputs:
                array.in_memory, array.depth = True, depth
            continue
        sources = frozenset().union(*(array.read() for array in node.inputs))
        depth = 1 + max((array.depth for array in sources), default=0)
        for array in node.outputs:
            array.sources, array.depth = sources, depth
            read = sum(source.bytes for source in sources)
            # Read again and again, an array is better written once than computed at each use.
            if (
                node.name.startswith(_REDUCTIONS)
                or array.needed
                or (array.uses > 1 and array.bytes * (1 + array.uses) < read * array.uses)
            ):
                write(array, node.scope)
    return kernels


def _write(kernels, fused, array: _Array, scope: str) -> None:
    """Has a fused kernel write the array; kernels that read the same at the same time are one."""
    if array.in_memory:
        return
    array.in_memory = True
    largest = max((source.bytes for source in array.sources), default=0)
    key = array.depth, frozenset(s for s in array.sources if 100 * s.bytes >= largest)
    if key in fused:
        kernel = kernels[fused[key]]
        kernels[fused[key]] = kernel._replace(bytes=kernel.bytes + array.bytes)
    else:
        fused[key] = len(kernels)
        read = sum(source.bytes for source in array.sources)
        kernels.append(Kernel(scope, "fused", 0, read + array.bytes))


def _alone(node: _Node) -> Kernel:
    written = sum(array.bytes for array in node.outputs)
    if node.name in _SLICES:
        moved = 2 * written + sum(array.bytes for array in node.inputs[1:])
    elif node.name == "dynamic_update_slice":
        moved = 2 * node.inputs[1].bytes
    else:
        moved = written + sum(array.bytes for array in node.inputs)
    return Kernel(node.scope, node.name, _operations(node), moved)


def _operations(node: _Node) -> int:
    inputs, outputs = node.avals
    if node.name == "dot_general":
        (contracted, _), _ = node.params["dimension_numbers"]
        return 2 * outputs[0].size * math.prod(inputs[0].shape[axis] for axis in contracted)
    if node.name == "conv_general_dilated":
        kernel, axes = inputs[1], node.params["dimension_numbers"].rhs_spec
        per_output = kernel.size // kernel.shape[axes[0]]
        # Of a gradient of a stride, what falls on the zeros between is not computed.
        return 2 * outputs[0].size * per_output // math.prod(node.params["lhs_dilation"])
    return 0
