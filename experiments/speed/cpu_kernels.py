"""The layers that `ssd_jax.models` computes differently from XLA on CPUs, and what that saves.

    python experiments/speed/cpu_kernels.py [--rounds 5]

Prints one line per layer of SSD512: CPU seconds and wall seconds of XLA's own way and of ours, the
median of rounds in which the two take turns.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from ssd_jax.models.convolution import convolution
from ssd_jax.models.pooling import max_pool


def xla_convolution(images, kernel, strides, padding):
    """The same layer without this package."""
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def layer(batch, side, channels, features, *, window=3, what):
    """Two functions, XLA's and ours, their arguments, and a name."""
    pad = window // 2
    geometry = ((1, 1), ((pad, pad), (pad, pad)))
    ways = xla_convolution, functools.partial(convolution, rhs_dilation=(1, 1))
    images = jnp.ones((batch, side, side, channels))
    kernel = jnp.full((window, window, channels, features), 0.01)
    given = jnp.ones((batch, side, side, features))

    def run(way, images, kernel, given):
        if what == "forward":
            return way(images, kernel, *geometry)
        return jax.vjp(lambda kernel: way(images, kernel, *geometry), kernel)[1](given)

    name = f"{window}x{window} {what}, {batch} x {side} x {side}, {channels} to {features} channels"
    return name, [jax.jit(functools.partial(run, way)) for way in ways], (images, kernel, given)


def pooling(batch, side, channels):
    """The gradient of a pooling of 3x3 windows with stride 2."""
    x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
    ways = (
        lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]),
        functools.partial(max_pool, window=3, stride=2, padding=1),
    )
    given = jnp.ones((batch, side // 2, side // 2, channels))

    def run(way, x, given):
        return jax.vjp(way, x)[1](given)

    name = f"max pool 3x3 / 2 gradient, {batch} x {side} x {side}, {channels} channels"
    return name, [jax.jit(functools.partial(run, way)) for way in ways], (x, given)


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    contests = [
        layer(1, 512, 64, 64, what="kernel gradient"),
        layer(1, 128, 256, 256, what="kernel gradient"),
        layer(1, 32, 512, 512, what="kernel gradient"),
        layer(2, 128, 256, 64, window=1, what="forward"),
        layer(2, 32, 1024, 256, window=1, what="forward"),
        pooling(2, 256, 64),
    ]
    for name, ways, arguments in contests:
        seconds = [[], []]
        for number in range(rounds + 1):
            for way, taken in zip(ways, seconds, strict=True):
                before = time.process_time(), time.perf_counter()
                jax.block_until_ready(way(*arguments))
                if number:  # the first compiles
                    taken.append((time.process_time() - before[0], time.perf_counter() - before[1]))
        xla, ours = np.median(seconds, axis=1)
        print(f"{name}: {xla[0]:.3f} ({xla[1]:.3f}) -> {ours[0]:.3f} ({ours[1]:.3f}) s")


if __name__ == "__main__":
    main()
