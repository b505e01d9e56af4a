"""How fast a program could run: the least it must compute and move, kernel by kernel.

Kernels are those that XLA makes on an accelerator. A convolution, a matrix product, a sort or a
pooling is one kernel. The operations between them (arithmetic, slices and reductions) are fused:
into one kernel for each set of arrays that must be written from the same inputs, or into the
convolution or product whose result they use. A kernel takes as long as its arithmetic or its memory
traffic, whichever is longer (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785).

Every rule errs towards less time, because a fraction of the least time must not exceed one. The
arithmetic of fused kernels is left out, of a conditional the cheapest branch counts, and a loop is
one kernel, inside which arrays of at most ON_CHIP bytes need not touch memory. Between two kernels
nothing stays in a cache, so only a program that fits entirely into a cache may be faster.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from jax.interpreters.partial_eval import dce_jaxpr

# The names of `jax.named_scope` in the training step and in the prediction.
STAGES = ("augment", "network", "loss", "match", "mine", "optimizer", "resize", "detect", "nms")

# Bytes of the last cache of an H200 (experiments/speed/h200.txtpb); most CPUs have less per core.
ON_CHIP = 50 * 2**20

# They only rename bytes; the gradient of a convolution reads its kernel backwards at no cost.
_ALIASES = {"pvary", "pcast", "copy", "copy_p", "stop_gradient", "sharding_constraint", "reshape",
            "squeeze", "bitcast_convert_type", "optimization_barrier", "rev"}  # fmt: skip
# They read no more of their operand than they write.
_SLICES = {"slice", "dynamic_slice", "gather", "split", "unstack"}
_ALONE = {"conv_general_dilated", "dot_general", "sort", "top_k", "fft", "dynamic_update_slice"}
_ALONE_PREFIXES = ("reduce_window", "select_and_", "scatter", "cum", "psum", "pmax", "ppermute",
                   "all_gather", "reduce_scatter", "all_to_all", "ffi_call")  # fmt: skip
# Operations on their results can be fused into them, before the results are written.
_PRODUCTS = {"conv_general_dilated", "dot_general"}
_LOOPS = {"scan", "while"}
_REDUCTIONS = ("reduce_", "argmax", "argmin")


class Kernel(NamedTuple):
    """`count` launches of one kernel; operations and bytes are those of one of them."""

    scope: str
    kind: str
    operations: int
    bytes: int
    count: int = 1

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least time at `peak` operations and `bandwidth` bytes per second."""
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
    """The kernels of a `jax.core.ClosedJaxpr`, as `jax.make_jaxpr` and `jit(f).trace` return it.

    Inside `jax.shard_map` they are those of one device; outside, every device has whole arrays.
    Operations whose results are not needed are left out, as by XLA.
    A conditional, also `jax.lax.platform_dependent`, counts as the branch that moves the fewest
    bytes, and of equal ones the one that computes least, whatever the platform.
    A loop is one kernel, with the arithmetic of all its rounds. Arrays that enter or leave it are
    moved once; inside, arrays of at most ON_CHIP bytes are not moved, larger ones at each use. An
    unknown number of rounds counts as one.
    """
    needed, _ = dce_jaxpr(jaxpr.jaxpr, used_outputs=True, instantiate=True)
    return _kernels(needed, [_Array(_size(v)) for v in needed.invars], "", free=0)


@dataclasses.dataclass(eq=False)
class _Array:
    """An array; if it is not in memory, `sources` are the arrays in memory it is computed from."""

    bytes: int  # that move when it is read or written; 0 if it stays on the chip
    in_memory: bool = True
    sources: frozenset["_Array"] = frozenset()
    depth: int = 0
    uses: int = 0
    needed: bool = False  # in memory, by a kernel that is not fused or as a result
    maker: int | None = None  # index of the convolution or product that computes it
    held: bool = False  # by its maker, which has not written it, because no other needed it so far

    def read(self) -> frozenset["_Array"]:
        return frozenset([self]) if self.in_memory else self.sources


class _Node(NamedTuple):
    name: str
    scope: str
    inputs: list[_Array]
    outputs: list[_Array]
    params: dict
    avals: tuple  # of the inputs and of the outputs
    inner: list[Kernel] | None  # of a loop or a conditional


def _kernels(jaxpr, arguments, scope, *, free) -> list[Kernel]:
    """The kernels of a program whose arrays of at most `free` bytes stay on the chip."""
    nodes: list[_Node] = []
    results = _flatten(jaxpr, arguments, scope, nodes, free)
    return _fuse(nodes, results)


def _flatten(jaxpr, arguments, outer, nodes, free) -> list[_Array]:
    arrays = dict(zip(jaxpr.invars, arguments, strict=True))
    arrays |= {v: _Array(_moved(v, free)) for v in jaxpr.constvars}

    def of(atom) -> _Array:
        return _Array(0) if hasattr(atom, "val") else arrays[atom]

    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [of(v) for v in eqn.invars]
        scope = "/".join(part for part in (outer, str(eqn.source_info.name_stack)) if part)
        body = next((b for b in _bodies(eqn) if len(b.invars) == len(inputs)), None)
        if name == "cond" and eqn.params.get("branches_platforms"):
            inputs = inputs[1:]
            body = min(_bodies(eqn), key=lambda b: _cost(_branch(b, inputs, scope, free)))
            outputs = _flatten(body, inputs, scope, nodes, free)
        elif name in _ALIASES:
            outputs = inputs[: len(eqn.outvars)]
        elif body is not None and name not in {"cond", *_LOOPS}:
            if name == "shard_map":
                shares = (_moved(v, free) for v in body.invars)
                inputs = [
                    whole if whole.bytes == share else _Array(share)
                    for whole, share in zip(inputs, shares, strict=True)
                ]
            outputs = _flatten(body, inputs, scope, nodes, free)
        else:
            outputs = [_Array(_moved(v, free), in_memory=False) for v in eqn.outvars]
            avals = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
            inner = None
            if name == "cond":
                inner = min((_branch(b, inputs[1:], scope, free) for b in _bodies(eqn)), key=_cost)
            elif name in _LOOPS:
                inner = [_loop(eqn, [*inputs, *outputs], scope)]
            nodes.append(_Node(name, scope, inputs, outputs, eqn.params, avals, inner))
        arrays.update(zip(eqn.outvars, outputs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _bodies(eqn) -> Iterator:
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def _branch(body, inputs, scope, free) -> list[Kernel]:
    return _kernels(body, [_Array(array.bytes) for array in inputs], scope, free=free)


def _cost(kernels) -> tuple[int, int]:
    return traffic(kernels), operations(kernels)


def _loop(eqn, arrays, scope) -> Kernel:
    """The kernel of a loop; `arrays` are those that enter and those that leave."""
    inside = []
    for body in _bodies(eqn):
        given = [_Array(_moved(v, ON_CHIP)) for v in body.invars]
        inside += _kernels(body, given, scope, free=ON_CHIP)
    # A round of a scan sees slices of some arrays. Those too large for the chip count inside.
    of_a_round = next(_bodies(eqn)) if eqn.primitive.name == "scan" else eqn
    seen = [*of_a_round.invars, *of_a_round.outvars]
    crossing = sum(a.bytes for a, v in zip(arrays, seen, strict=True) if not _moved(v, ON_CHIP))
    rounds = eqn.params.get("length", 1)
    moved = crossing + rounds * traffic(inside)
    return Kernel(scope, eqn.primitive.name, rounds * operations(inside), moved)


def _moved(variable, free) -> int:
    size = _size(variable)
    return size if size > free else 0


def _size(variable) -> int:
    return _size_of(variable.aval)


def _size_of(aval) -> int:
    return math.prod(getattr(aval, "shape", ())) * getattr(
        getattr(aval, "dtype", None), "itemsize", 0
    )


def _is_alone(node: _Node) -> bool:
    return node.inner is not None or node.name in _ALONE or node.name.startswith(_ALONE_PREFIXES)


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
            depth = _depth(node.inputs)
            for array in node.outputs:
                array.in_memory, array.depth = True, depth
                if node.name in _PRODUCTS:
                    array.maker, array.held = len(kernels), not array.needed
            kernels += [_alone(node)] if node.inner is None else node.inner
            continue
        for array, aval in zip(node.outputs, node.avals[1], strict=True):
            sources = _sources(node, aval)
            depth = _depth(sources)
            array.sources, array.depth = sources, depth
            read = sum(source.bytes for source in sources)
            reduced = node.name.startswith(_REDUCTIONS)
            # An array that is used often is better written once than computed at each use.
            if (
                reduced
                or array.needed
                or (array.uses > 1 and array.bytes * (1 + array.uses) < read * array.uses)
            ):
                write(array, node.scope)
            if reduced:
                array.sources = frozenset()  # its users have to wait for it
    return kernels


def _sources(node: _Node, aval) -> frozenset[_Array]:
    """The arrays in memory from which a result of the shape `aval` is computed."""
    first, *others = node.inputs or [_Array(0)]
    read = first.read()
    if node.name in _SLICES and first.in_memory and not first.held:
        read = [_Array(min(first.bytes, _size_of(aval)), depth=first.depth)]
    return frozenset(read).union(*(array.read() for array in others))


def _write(kernels, fused, array: _Array, scope: str) -> None:
    """Has a kernel write the array; arrays with the same sources and depth share a kernel."""
    if array.in_memory:
        return
    array.in_memory = True
    # An array that is computed from another one while that is written need not read it.
    beside = _key(frozenset().union(*(s.sources or {s} for s in array.sources)))
    key = beside if beside in fused else _key(array.sources)
    if key not in fused:
        fused[key] = _begin(kernels, array, scope)
    _move(kernels, fused[key], array.bytes)


def _key(sources: frozenset[_Array]) -> Hashable:
    largest = max((source.bytes for source in sources), default=0)
    return _depth(sources), frozenset(s for s in sources if 100 * s.bytes >= largest)


def _depth(sources: Iterable[_Array]) -> int:
    return 1 + max((source.depth for source in sources), default=0)


def _begin(kernels, array: _Array, scope: str) -> int:
    """Index of a kernel that has read the sources: the product that makes one, or a new kernel."""
    latest = [s for s in array.sources if s.depth == array.depth - 1 and s.maker is not None]
    made = max(latest, key=lambda source: source.bytes, default=None)
    if made is None:
        kernels.append(Kernel(scope, "fused", 0, 0))
    number = len(kernels) - 1 if made is None else made.maker
    for source in array.sources - {made}:
        _move(kernels, number, source.bytes)
        if source.held:
            source.held = False
            _move(kernels, source.maker, source.bytes)
    return number


def _move(kernels, index, moved):
    kernels[index] = kernels[index]._replace(bytes=kernels[index].bytes + moved)


def _alone(node: _Node) -> Kernel:
    written = sum(array.bytes for array in node.outputs if not array.held)
    if node.name == "dynamic_update_slice":
        update = _size_of(node.avals[0][1])
        moved = node.inputs[1].bytes + min(update, node.outputs[0].bytes)
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
        # In the gradient of a strided convolution, products with the inserted zeros do not count.
        return 2 * outputs[0].size * per_output // math.prod(node.params["lhs_dilation"])
    return 0
