"""The largest batch that fits: few compilations, and the same answer as trying them all."""

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_config

from ssd_jax import benchmark
from ssd_jax.benchmark import find_batch, largest_within, run_find_batch
from ssd_jax.errors import UserError
from ssd_jax.sharding import make_mesh


class Calls:
    """A function that remembers what it was asked."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def __call__(self, n):
        self.seen.append(n)
        return self.function(n)


@pytest.mark.parametrize(
    "needed",
    [
        lambda n: 100 + 7 * n,
        lambda n: 100 + 7 * (n + n % 2),  # as padded to even numbers
        lambda n: max(400, 9 * n),
        lambda n: 10 + n**2,
        lambda n: 50,
    ],
    ids=["line", "stairs", "flat", "square", "level"],
)
def test_the_largest_is_found_with_few_calls(needed):
    for limit in (49, 107, 114, 401, 1000, 5000):
        if needed(1000) > limit:
            calls = Calls(needed)
            expected = max((n for n in range(1, 1000) if needed(n) <= limit), default=0)
            assert largest_within(calls, limit) == expected
            assert len(calls.seen) == len(set(calls.seen)) <= 20


def test_a_straight_line_takes_four_calls():
    calls = Calls(lambda n: 100 + 7 * n)
    assert largest_within(calls, 1000) == 128
    assert len(calls.seen) == 4


@pytest.fixture
def config(shapes):
    return tiny_config(shapes, model__backbone="small", model__batch_norm_group=4)


@pytest.fixture
def two_devices(monkeypatch):
    mesh = make_mesh(jax.devices()[:2])
    monkeypatch.setattr(benchmark, "make_mesh", lambda: mesh)
    return mesh


def check_largest_batch(config, capsys):
    found = run_find_batch(config, memory_gib=0.01)
    assert found.per_device % 2 == 0  # two devices, groups of four
    assert found.measured[found.per_device] <= found.limit == int(0.01 * 2**30)
    assert found.measured[found.per_device + 2] > found.limit
    told = capsys.readouterr().out
    assert f"config.batch_size={2 * found.per_device} on 2 x cpu" in told
    assert "assumed: 0.01 GiB a device as told" in told


def test_the_batch_is_one_that_groups_divide_and_that_fits(
    config, two_devices, monkeypatch, capsys
):
    # A step that compiles in no time; the next test takes the real one.
    monkeypatch.setattr(
        benchmark.experiment,
        "build_step",
        lambda *_: lambda state, batch: (state, {"loss": jnp.sort(batch.canvas * 1.5).sum()}),
    )
    check_largest_batch(config, capsys)
    with pytest.raises(UserError, match=r"a step with 2 images a device needs .* at most 0\.00"):
        find_batch(config, two_devices, classes=3, objects=3, limit=1000)


@pytest.mark.long
def test_the_batch_of_a_real_step(config, two_devices, capsys):
    check_largest_batch(config, capsys)


def test_memory_for_the_cache_is_not_there_for_the_step(config, two_devices, monkeypatch):
    found = []
    monkeypatch.setattr(
        benchmark,
        "find_batch",
        lambda *_, limit, **__: found.append(limit) or benchmark.FoundBatch(1, 2, limit, {}),
    )
    for cache in ("none", "device"):
        config.data.cache = cache
        run_find_batch(config, memory_gib=1.0)
    assert found[0] - found[1] == 20 * 64 * 64 * 3 // 2
