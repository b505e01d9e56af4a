"""What a program must compute and move: counted by hand for small ones, and as XLA counts it."""

import jax
import jax.numpy as jnp
import pytest

from ssd_jax.roofline import (
    Kernel,
    grouped,
    layer_of,
    operations,
    program_kernels,
    roofline_seconds,
    stage_of,
    traffic,
)

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

    # Each round: exp reads one and writes one, sort the same, the sum reads two and writes one.
    assert traffic(kernels_of(residual, x)) == 4 * (2 + 2 + 3) * 4 * MIB


def test_loops_count_their_rounds_and_slices_what_they_take():
    x = jax.ShapeDtypeStruct((64, MIB), jnp.float32)
    assert traffic(kernels_of(lambda x: x[3:4] * 1.0, x)) == 4 * 4 * MIB
    row = jax.ShapeDtypeStruct((MIB,), jnp.float32)
    loop = kernels_of(lambda x: jax.lax.fori_loop(0, 10, lambda _, a: jnp.sin(a), x), row)
    assert traffic(loop) == pytest.approx(10 * 2 * 4 * MIB, rel=1e-5)


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


def test_of_several_branches_the_longest_of_several_platforms_the_shortest():
    x = jax.ShapeDtypeStruct((MIB,), jnp.float32)
    branches = {"default": jnp.sin, "cpu": lambda x: jnp.sort(jnp.sort(x))}
    chosen = kernels_of(lambda x: jax.lax.cond(x[0] > 0, *branches.values(), x), x)
    assert traffic(chosen) == pytest.approx(4 * 4 * MIB, rel=1e-5)
    anywhere = kernels_of(lambda x: jax.lax.platform_dependent(x, **branches), x)
    assert traffic(anywhere) == pytest.approx(2 * 4 * MIB, rel=1e-5)
