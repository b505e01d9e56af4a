"""What a program must compute and move: counted by hand for small ones, and as XLA counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssd_jax.benchmark.roofline import (
    ON_CHIP,
    Kernel,
    grouped,
    layer_of,
    operations,
    program_kernels,
    roofline_seconds,
    stage_of,
    traffic,
)
from ssd_jax.models.pooling import max_pool
from ssd_jax.ops.detect import class_scores, multibox_detection

X = jax.ShapeDtypeStruct((8, 16, 16, 4), jnp.float32)
W = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)
MIB = 2**20


def kernels_of(function, *arguments):
    return program_kernels(jax.make_jaxpr(function)(*arguments))


def conv(x, w, stride=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_of_a_convolution_costs_as_much_as_itself(stride):
    forward = kernels_of(lambda x, w: conv(x, w, stride), X, W)
    side = 16 // stride
    assert operations(forward) == 2 * 8 * side * side * 6 * 9 * 4
    assert traffic(forward) == 4 * (8 * 16 * 16 * 4 + 9 * 4 * 6 + 8 * side * side * 6)
    step = kernels_of(jax.value_and_grad(lambda *xw: conv(*xw, stride).sum(), (0, 1)), X, W)
    assert operations(step) == 3 * operations(forward)


def test_xla_counts_the_same_operations():
    def product(a, b):
        return jnp.einsum("bik,bkj->bij", a, b)

    shapes = jnp.ones((2, 8, 16)), jnp.ones((2, 16, 32))
    assert operations(kernels_of(product, *shapes)) == 2 * 2 * 8 * 32 * 16
    counted = jax.jit(product).lower(*shapes).cost_analysis()["flops"]
    assert operations(kernels_of(product, *shapes)) == counted


def step(images, *kernels):
    """A gradient through convolution, normalisation, ReLU, pooling and bias."""

    def loss(kernels):
        y = conv(images, kernels[0])
        y = (y - y.mean((0, 1, 2))) * jax.lax.rsqrt(y.var((0, 1, 2)) + 1e-5)
        y = max_pool(jax.nn.relu(y), window=2, stride=2)
        return jnp.square(jax.nn.relu(conv(y, kernels[1]) + 1)).mean()

    return jax.grad(loss)(kernels)


def detections(deltas, logits):
    anchors = np.random.default_rng(0).random((400, 4), np.float32)
    return jax.vmap(lambda d, c: multibox_detection(d, class_scores(c), anchors))(deltas, logits)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (step, [(8, 32, 32, 16), (3, 3, 16, 16), (3, 3, 16, 16)]),
        (detections, [(4, 400, 4), (4, 400, 21)]),
    ],
)
def test_what_xla_compiles_moves_no_less(function, shapes):
    traced = jax.jit(function).trace(*map(jnp.ones, shapes))
    moved = traced.lower().compile().cost_analysis()["bytes accessed"]
    assert 0.3 * moved < traffic(program_kernels(traced.jaxpr)) <= moved


def test_arithmetic_is_fused_around_what_must_be_in_memory():
    x = jax.ShapeDtypeStruct((MIB,), jnp.float32)
    one = 4 * MIB
    assert traffic(kernels_of(lambda x: jnp.exp(x * 2) + 1, x)) == 2 * one
    # A mean and a mean of squares are one pass, what is subtracted from them another.
    normalised = kernels_of(lambda x: (x - x.mean()) / jnp.square(x).mean(), x)
    assert traffic(normalised) == pytest.approx(3 * one, rel=1e-5)
    two_passes = kernels_of(lambda x: jnp.square(x - x.mean()).mean(), x)
    assert traffic(two_passes) == pytest.approx(2 * one, rel=1e-5)
    # Half the bytes in half precision.
    half = kernels_of(lambda x: x + 1, jax.ShapeDtypeStruct((MIB,), jnp.bfloat16))
    assert traffic(half) == one


def test_a_sum_that_grows_is_not_computed_again_from_its_beginning():
    x = jax.ShapeDtypeStruct((MIB,), jnp.float32)

    def residual(x):
        for _ in range(4):
            x = x + jnp.sort(jnp.exp(x))
        return x

    # The first exp reads one and writes one. Each round the sort does too; the sum reads two and
    # writes one, beside which the next exp writes another.
    assert traffic(kernels_of(residual, x)) == (2 + 4 * (2 + 3) + 3) * 4 * MIB


def test_slices_are_read_as_far_as_they_go_and_parts_are_written_together():
    x = jax.ShapeDtypeStruct((64, MIB), jnp.float32)
    assert traffic(kernels_of(lambda x: x[3:4] * 2.0, x)) == 2 * 4 * MIB
    assert traffic(kernels_of(lambda x: jnp.concatenate([x[:2], x[5:7] + 1]), x)) == 8 * 4 * MIB


def test_what_no_result_needs_costs_nothing():
    forward = kernels_of(lambda x, w: conv(x, w), X, W)
    assert kernels_of(lambda x, w: (conv(x, w), conv(x * 2, w))[0], X, W) == forward


def test_the_result_of_a_product_is_worked_on_before_it_is_written():
    before, after = 4 * 8 * 16 * 16 * 4 + 4 * 9 * 4 * 6, 4 * 8 * 16 * 16 * 6
    (kernel,) = kernels_of(lambda x, w: jax.nn.relu(conv(x, w) + 1), X, W)
    assert kernel.bytes == before + after
    # Sums are made beside; what needs them first has to read the result, which then is in memory.
    (kernel,) = kernels_of(lambda x, w: conv(x, w).sum(), X, W)
    assert kernel.bytes == before + 4
    (first, second) = kernels_of(lambda x, w: (y := conv(x, w)) - y.mean(), X, W)
    assert (first.bytes, second.bytes) == (before + 4 + after, 4 + 2 * after)


@pytest.mark.parametrize("rounds", [1, 10])
def test_a_loop_moves_a_small_array_once_and_a_large_one_each_round(rounds):
    def squares(x):
        return jax.lax.fori_loop(0, rounds, lambda _, x: jnp.sort(x * x), x)

    small, large = (jax.ShapeDtypeStruct((n,), jnp.float32) for n in (ON_CHIP // 4, ON_CHIP))
    assert traffic(kernels_of(squares, small)) == pytest.approx(2 * ON_CHIP, abs=100)
    # To square it and to sort it are a kernel each.
    assert traffic(kernels_of(squares, large)) == pytest.approx(rounds * 4 * 4 * ON_CHIP, rel=1e-5)


def test_a_loop_computes_each_round_and_reads_and_writes_all_slices():
    def products(rows, matrix):
        return jax.lax.map(lambda row: jnp.tanh(row @ matrix) @ matrix, rows)

    rows, matrix = jnp.ones((32, 4, 8)), jnp.ones((8, 8))
    (loop,) = kernels_of(products, rows, matrix)
    assert loop.operations == 32 * 2 * (2 * 4 * 8 * 8)
    assert loop.bytes == 4 * (2 * 32 * 4 * 8 + 8 * 8)
    # Inside another loop nothing of it is new.
    (twice,) = kernels_of(
        lambda r, m: jax.lax.fori_loop(0, 2, lambda _, r: products(r, m), r), rows, matrix
    )
    assert (twice.operations, twice.bytes) == (
        2 * loop.operations,
        pytest.approx(loop.bytes, abs=8),
    )


def test_a_kernel_is_bound_by_arithmetic_or_by_memory():
    kernels = [Kernel("", "dot_general", 1000, 10), Kernel("", "fused", 0, 50, count=2)]
    assert roofline_seconds(kernels, peak=100.0, bandwidth=10.0) == 10 + 2 * 5


def test_kernels_know_their_stage_and_layer():
    def step(x, w):
        with jax.named_scope("network"), jax.named_scope("SSD"), jax.named_scope("conv1"):
            y = conv(x, w)
        with jax.named_scope("loss"):
            return jax.vmap(lambda y: jax.named_scope("mine")(jnp.sort)(y).sum())(y).sum()

    kernels = kernels_of(jax.grad(step, 1), X, W)
    assert set(grouped(kernels, layer_of)) == {"conv1", "mine", "loss"}
    convolutions = [k for k in kernels if k.kind == "conv_general_dilated"]
    assert {stage_of(k) for k in convolutions} == {"network"}
    assert stage_of(Kernel("jvp(somewhere)", "fused", 0, 1)) == "other"


def test_of_several_branches_and_of_several_platforms_the_cheapest_counts():
    x = jax.ShapeDtypeStruct((MIB,), jnp.float32)
    branches = {"default": jnp.sort, "cpu": lambda x: jnp.sort(jnp.sort(x))}
    for order in (list(branches.values()), list(branches.values())[::-1]):
        chosen = kernels_of(lambda x, order=order: jax.lax.cond(x[0] > 0, *order, x), x)
        assert traffic(chosen) == pytest.approx(2 * 4 * MIB, rel=1e-5)
    anywhere = kernels_of(lambda x: jax.lax.platform_dependent(x, **branches), x)
    assert traffic(anywhere) == pytest.approx(2 * 4 * MIB, rel=1e-5)
    # Which of them it is may change nothing, and that costs nothing.
    assert traffic(kernels_of(lambda x: jax.lax.cond(x[0] > 0, jnp.sort, lambda x: x, x), x)) < 100


def test_a_device_reads_its_own_share_of_what_is_cut_over_devices():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    cut, whole = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    add = jax.shard_map(lambda x, y: x + y, mesh=mesh, in_specs=(cut, whole), out_specs=cut)
    y = jax.ShapeDtypeStruct(X.shape[1:], X.dtype)
    assert traffic(kernels_of(add, X, y)) == 4 * (2 * X.size // 2 + y.size)
