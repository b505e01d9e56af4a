"""The peak speeds of the devices, to which all figures are compared."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ssd_jax.benchmark.clock import take_turns
from ssd_jax.errors import UserError
from ssd_jax.sharding import each_device_alone, make_mesh, put_batch, use_cpu_cores


def choose_devices(batch_size: int, devices: int | None = None) -> Mesh:
    """The first `devices`, or as many as training uses; must come before JAX opens its devices."""
    if devices is not None and jax.config.jax_num_cpu_devices == -1:
        jax.config.update("jax_num_cpu_devices", devices)
    use_cpu_cores(batch_size)
    if devices is not None and devices > jax.device_count():
        raise UserError(f"--devices: got {devices}, expected at most {jax.device_count()}.")
    return make_mesh(jax.devices()[:devices])


class Machine(NamedTuple):
    """Operations and bytes per second of one device, while the others do the same."""

    matmul: float
    bandwidth: float


def measure_machine(mesh: Mesh, *, dtype: str, rounds: int = 5) -> Machine:
    """The fastest of `rounds` large matrix products in `dtype`, and of as many `x + 1`.

    Precision is JAX's default, as in the networks. The arrays of `x + 1` are larger than caches.
    """
    accelerator = mesh.devices.flat[0].platform != "cpu"
    side, length = (8192, 2**28) if accelerator else (1024, 2**24)
    # Random, because a GPU has a higher clock rate if few bits change, as with ones.
    square = np.random.default_rng(0).standard_normal((side, side), np.float32)
    squares = np.broadcast_to(square.astype(jnp.dtype(dtype)), (mesh.size, side, side))
    factors = put_batch(squares, mesh)
    row = put_batch(np.ones((mesh.size, length // mesh.size), np.float32), mesh)
    product = each_device_alone(lambda _, a: a @ a, mesh)
    stream = each_device_alone(lambda _, x: x + 1, mesh)
    nothing = jnp.zeros(())
    seconds = take_turns(
        {"matmul": lambda: product(nothing, factors), "stream": lambda: stream(nothing, row)},
        rounds=rounds,
    )
    return Machine(
        matmul=2 * side**3 / min(seconds["matmul"]),
        bandwidth=2 * row.nbytes / mesh.size / min(seconds["stream"]),
    )


def describe_machine(mesh: Mesh) -> dict[str, str | int]:
    """The machine and its load, for the results."""
    return {
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "jax": jax.__version__,
        "load": round(os.getloadavg()[0], 1),
    }
