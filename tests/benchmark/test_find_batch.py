"""The largest batch that fits, found with few compilations."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_config

from ssd_jax.benchmark import find_batch
from ssd_jax.benchmark.find_batch import largest_within, run_find_batch
from ssd_jax.errors import UserError
from ssd_jax.sharding import make_mesh


class Calls:
    """A function that remembers what it was asked."""

    def __init__(self, function):
        self.function, self.seen = function, []

    def __call__(self, n):
        self.seen.append(n)
        return self.function(n)


@pytest.fixture
def config(shapes):
    return tiny_config(shapes, model__backbone="small", model__batch_norm_group=4)


@pytest.fixture
def two_devices():
    return make_mesh(jax.devices()[:2])


@pytest.mark.parametrize("begin", [1, 16])
@pytest.mark.parametrize("close", [0.0, 1 / 16])
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
def test_the_largest_is_found_with_few_calls(needed, close, begin):
    for limit in (49, 107, 114, 401, 1000, 5000):
        if needed(1000) > limit:
            calls = Calls(needed)
            found = largest_within(calls, limit, start=begin, close=close)
            expected = max((n for n in range(1, 1000) if needed(n) <= limit), default=0)
            assert found <= expected <= found + int(found * close)
            assert len(calls.seen) == len(set(calls.seen)) <= 20
            assert min(calls.seen) >= 1


@pytest.mark.parametrize("close", [0.0, 1 / 16])
def test_a_straight_line_takes_four_calls(close):
    calls = Calls(lambda n: 100 + 7 * n)
    found = largest_within(calls, 1000, close=close)
    assert 128 / (1 + close) - 1 <= found <= 128
    assert len(calls.seen) == 4


def check_largest_batch(config, mesh, capsys):
    found = run_find_batch(config, mesh, memory_gib=0.01)
    assert found.per_device % 2 == 0  # two devices, groups of four
    assert found.measured[found.per_device] <= found.limit == int(0.01 * 2**30)
    more = min(images for images, size in found.measured.items() if size > found.limit)
    assert more <= found.per_device * (1 + 1 / 16) + 2
    told = capsys.readouterr().out
    assert f"config.batch_size={2 * found.per_device} on 2 x cpu" in told
    assert "assumed: 0.01 GiB per device as given" in told
    assert "4 images per device: " in told  # the batch of the config came first


def test_the_batch_is_one_that_groups_divide_and_that_fits(
    config, two_devices, monkeypatch, capsys
):
    sizes = []

    def build_step(*_, image_size):
        """A step that compiles in no time; the next test takes the real one."""
        sizes.append(image_size)
        return lambda state, batch: (state, {"loss": jnp.sort(batch.canvas * 1.5).sum()})

    monkeypatch.setattr(find_batch.experiment, "build_step", build_step)
    check_largest_batch(config, two_devices, capsys)
    config.augment.image_sizes = (64, 96, 80)
    check_largest_batch(config, two_devices, capsys)
    assert sizes == [64, 96]
    with pytest.raises(UserError, match=r"a step with 2 images per device needs .* at most 0\.00"):
        find_batch.find_batch(config, two_devices, classes=3, objects=3, limit=1000)


def test_a_batch_that_does_not_compile_does_not_fit(config, two_devices, monkeypatch, capsys):
    def compile_step(step, state, batch, mesh, *, options):
        if batch.canvas.shape[0] > 2 * most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no algorithm worked\nmore")
        return None

    monkeypatch.setattr(find_batch, "compile_step", compile_step)
    monkeypatch.setattr(find_batch, "step_memory", lambda plan: SimpleNamespace(total=5))
    most = 8
    words = {"classes": 3, "objects": 3, "limit": 1000}
    assert find_batch.find_batch(config, two_devices, **words).per_device == most
    assert "does not compile: RESOURCE_EXHAUSTED: no algorithm worked\n" in capsys.readouterr().out
    most = 0
    with pytest.raises(UserError, match="a step with 2 images per device does not compile"):
        find_batch.find_batch(config, two_devices, **words)


@pytest.mark.long
def test_the_batch_of_a_real_step(config, two_devices, capsys):
    check_largest_batch(config, two_devices, capsys)


def test_memory_for_the_cache_is_not_there_for_the_step(config, two_devices, monkeypatch):
    found = []
    monkeypatch.setattr(
        find_batch,
        "find_batch",
        lambda *_, limit, **__: found.append(limit) or find_batch.FoundBatch(1, 2, limit, {}),
    )
    for cache in ("none", "device"):
        config.data.cache = cache
        run_find_batch(config, two_devices, memory_gib=1.0)
    assert found[0] - found[1] == 20 * 64 * 64 * 3 // 2


def test_a_cache_that_alone_does_not_fit_is_told(config, two_devices):
    config.data.cache = "device"
    with pytest.raises(UserError, match=r"data\.cache = 'device' needs 0\.00 GiB per device, exp"):
        run_find_batch(config, two_devices, memory_gib=1e-6)
