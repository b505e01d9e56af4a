"""It and its gradients are those of `lax.conv_general_dilated`, on CPUs with fewer convolutions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from ssd_jax.models import convolution as module
from ssd_jax.models.convolution import convolution
from ssd_jax.models.pooling import max_pool
from ssd_jax.sharding import make_mesh


@pytest.fixture(autouse=True)
def all_layers(monkeypatch):
    """Those of the tests are too small to be worth it."""
    monkeypatch.setattr(module, "_WORTH_IT", 0)


def random(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def both(strides, padding, dilation):
    """Our convolution and XLA's of the same geometry."""

    def ours(images, kernel):
        return convolution(images, kernel, strides, padding, rhs_dilation=dilation)

    def xla(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, strides, padding, rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    return ours, xla


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("pixels", [1, 60, 10_000])
@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "dilation"),
    [
        ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1)),
        ((7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1)),
        ((3, 3), (1, 1), ((6, 6), (6, 6)), (6, 6)),
        ((4, 2), (2, 1), ((1, 0), (0, 3)), (1, 2)),
    ],
)
def test_gradients_are_those_of_xla(
    kernel, strides, padding, dilation, pixels, channels, monkeypatch
):
    """In strips of one row, of some and of all; few channels in one product, others tap by tap."""
    monkeypatch.setattr(module, "_PIXELS", pixels)
    images, weights = random(0, 2, 18, 14, channels), random(1, *kernel, channels, 5)
    ours, xla = both(strides, padding, dilation)
    values, pull = jax.vjp(ours, images, weights)
    expected, expected_pull = jax.vjp(xla, images, weights)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    gradient = random(2, *values.shape)
    for one, other in zip(pull(gradient), expected_pull(gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_hessians_are_those_of_xla_if_taken_in_reverse_twice():
    images, weights, direction = random(0, 2, 9, 8, 3), random(1, 3, 3, 3, 5), random(2, 3, 3, 3, 5)
    ours, xla = both((1, 1), ((1, 1), (1, 1)), (1, 1))

    def pooled(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    def gradient(convolve, pool):
        return jax.grad(lambda kernel: jnp.sum(pool(convolve(images, kernel)) ** 3))

    with_ours = gradient(ours, functools.partial(max_pool, window=2, stride=2))
    product = jax.grad(lambda kernel: jnp.vdot(with_ours(kernel), direction))(weights)
    expected = jax.jvp(gradient(xla, pooled), (weights,), (direction,))[1]
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-3)


def lowered(platform, function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_a_pointwise_gradient_turns_no_map_round():
    """XLA's product of four axes copies the map, which took as long as the products themselves."""
    if jax.default_backend() != "cpu":
        pytest.skip("only CPUs compute it as products")
    ours, _ = both((1, 1), ((0, 0), (0, 0)), (1, 1))

    def gradients(images, kernel, given):
        return jax.vjp(ours, images, kernel)[1](given * 2)

    arguments = random(0, 2, 16, 16, 32), random(1, 1, 1, 32, 24), random(2, 2, 16, 16, 24)
    program = jax.jit(gradients).lower(*arguments).compile().as_text()
    assert not [line for line in program.splitlines() if " copy(" in line or " transpose(" in line]


def test_only_cpus_are_spared_the_third_convolution():
    ours, _ = both((1, 1), ((1, 1), (1, 1)), (1, 1))

    def gradients(images, kernel):
        return jax.grad(lambda *both: jnp.sum(ours(*both) ** 2), (0, 1))(images, kernel)

    arguments = random(0, 1, 8, 8, 3), random(1, 3, 3, 3, 5)
    count = {
        platform: lowered(platform, gradients, *arguments).count("stablehlo.convolution")
        for platform in ("cpu", "cuda")
    }
    assert count == {"cpu": 2, "cuda": 3}


def test_a_kernel_of_one_pixel_is_a_product_on_cpus():
    ours, _ = both((2, 2), ((0, 0), (0, 0)), (1, 1))
    arguments = random(0, 1, 8, 8, 3), random(1, 1, 1, 3, 5)
    assert "stablehlo.convolution" not in lowered("cpu", ours, *arguments)
    assert "stablehlo.convolution" in lowered("cuda", ours, *arguments)


def test_small_layers_are_left_to_xla(monkeypatch):
    arguments = random(0, 3, 8, 8, 4), random(1, 1, 1, 4, 8)
    for limit, is_left in ((8 * 8 * 4 * 8, False), (8 * 8 * 4 * 8 + 1, True)):
        monkeypatch.setattr(module, "_WORTH_IT", limit)
        ours, _ = both((1, 1), ((0, 0), (0, 0)), (1, 1))
        assert ("stablehlo.convolution" in lowered("cpu", ours, *arguments)) is is_left


def test_a_network_in_bfloat16_has_gradients_in_bfloat16():
    images, kernel = (
        random(0, *shape, dtype=jnp.bfloat16) for shape in ((1, 5, 5, 2), (3, 3, 2, 4))
    )
    ours, xla = both((1, 1), ((0, 0), (0, 0)), (1, 1))
    one, other = (
        jax.grad(lambda k, f=f: jnp.sum(f(images, k).astype(jnp.float32)))(kernel)
        for f in (ours, xla)
    )
    assert one.dtype == other.dtype == jnp.bfloat16
    np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), rtol=0.02)


def test_devices_sum_their_own_pixels():
    ours, _ = both((1, 1), ((1, 1), (1, 1)), (1, 1))
    images, kernel = random(0, 4, 6, 6, 2), random(1, 3, 3, 2, 3)

    def gradient(images, kernel):
        return jax.grad(lambda kernel: jnp.sum(ours(images, kernel) ** 2))(kernel)

    def of_own(images, kernel):
        kernel = lax.pcast(kernel, ("data",), to="varying")
        return lax.psum(gradient(images, kernel), "data")

    mesh = make_mesh(jax.devices()[:2])
    specs = (jax.P("data"), jax.P())
    cut = jax.jit(jax.shard_map(of_own, mesh=mesh, in_specs=specs, out_specs=jax.P()))
    np.testing.assert_allclose(cut(images, kernel), gradient(images, kernel), rtol=1e-5)
