"""What a step needs at least on an H200, from its kernels."""

import pytest
from scripts import script

from ssd_jax.benchmark.roofline import Kernel


@pytest.fixture
def modelled():
    with script("experiments/speed/modelled.py") as module:
        yield module


def test_the_row_of_a_table(modelled):
    # 2 s of arithmetic, then 1 s and 1 s of memory.
    kernels = [
        Kernel("network", "conv_general_dilated", 2 * 790 * 10**12, 4300 * 10**9),
        Kernel("loss/mine", "fused", 0, 4300 * 10**9, count=2),
    ]
    row = modelled.row(kernels, images=8)
    assert row["images_per_second"] == 2.0
    assert row["arithmetic_alone"] == 4.0
    assert row["gflop_an_image"] == 2 * 790e3 / 8
    assert row["megabytes_an_image"] == 3 * 4300e3 / 8
    assert row["bound_by_arithmetic"] == 0.5
    assert row["parts"] == {"network": 0.5, "mine": 0.5}
