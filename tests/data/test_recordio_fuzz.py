"""Damaged and hostile RecordIO files give nothing but `DataError`, in bounded time and memory.

For a long run, without the checks of types, which take most of the time:
SSD_JAX_FUZZ_SECONDS=600 python -m pytest -o addopts= tests/data/test_recordio_fuzz.py
"""

import contextlib
import itertools
import os
import random
import struct
import time
import tracemalloc

import numpy as np

from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.recordio import mixed_object_widths, open_recordio
from ssd_jax.data.sources.recordio_file import frame
from ssd_jax.errors import DataError

SECONDS = float(os.environ.get("SSD_JAX_FUZZ_SECONDS", "1"))
MAGIC = 0xCED7230A
NUMBERS = (0, 1, -1, 2, 3, 4, 5, 6, 7, 0.5, 1e9, 3e38, float("nan"), float("inf"))
WORDS = (
    MAGIC,
    *(flag << 29 | length for flag in (0, 1, 2, 3, 7) for length in (0, 1, 4, 24, 52, 2**29 - 1)),
    *np.array(NUMBERS, "<f4").view("<u4").tolist(),
    2**32 - 1,
)


def record(rng):
    """A payload that is sound, or as good as."""
    header, width = rng.choice((2, 2, 4, 5)), rng.choice((5, 5, 6, 8))
    numbers = [header, width, *(rng.choice(NUMBERS) for _ in range(header - 2))]
    for _ in range(rng.randrange(4)):
        numbers += [rng.randrange(3), 0.125, 0.25, 0.5, 1.0] + [rng.choice((0, 1))] * (width - 5)
    numbers = np.array(numbers, "<f4").tobytes()
    length = len(numbers) // 4 if rng.random() < 0.9 else rng.choice(WORDS)
    image = b"".join(rng.choice((b"x", b"abcd", struct.pack("<I", MAGIC))) for _ in range(9))
    return struct.pack("<IfQQ", length, 0, rng.randrange(9), 0) + numbers + image


def damaged(rng, data):
    """The same with words, bytes and stretches replaced, doubled, left out, cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        stretch = slice(at, at + rng.choice((1, 4, 8, 40)))
        match rng.randrange(6):
            case 0:
                data[at // 4 * 4 : at // 4 * 4 + 4] = struct.pack("<I", rng.choice(WORDS))
            case 1:
                data[at : at + 1] = rng.randbytes(1)
            case 2:
                data[at:at] = data[stretch] * rng.choice((1, 2, 100))
            case 3:
                del data[stretch]
            case 4:
                del data[at:]
            case 5:
                data[at:at] = b"".join(struct.pack("<I", rng.choice(WORDS)) for _ in range(20))
    return bytes(data)


def index_text(rng, frames, size):
    offsets = list(itertools.accumulate(map(len, frames), initial=0))[:-1]
    lines = [
        f"{rng.choice((number, rng.randrange(4)))}\t{offset}"
        for number, offset in enumerate(offsets)
    ]
    if rng.random() < 0.3:
        lines += [f"k{number}\t{rng.randrange(-8, size + 9)}" for number in range(9)]
    if rng.random() < 0.1:
        lines = [f"{number}\t{4 * number}" for number in range(size // 4)]
    return "\n".join(lines).encode()


def read_all(path):
    for policy in ("skip", "error"):
        with contextlib.suppress(DataError):
            source = open_recordio(path, problems=Problems(policy))
            for number in range(len(source)):
                source[number]
    with contextlib.suppress(DataError):
        mixed_object_widths(path)


def test_only_data_errors(tmp_path, monkeypatch):
    path, opened = tmp_path / "a.rec", 0
    monkeypatch.setenv("SSD_JAX_CACHE", str(path))  # no folder, so nothing is kept
    until = time.monotonic() + SECONDS
    tracemalloc.start()
    for seed in itertools.count():
        if time.monotonic() > until:
            break
        rng = random.Random(seed)
        frames = [frame(record(rng)) for _ in range(rng.randrange(1, 8))]
        path.write_bytes(data := damaged(rng, b"".join(frames)))
        path.with_suffix(".idx").unlink(missing_ok=True)
        if rng.random() < 0.5:
            text = index_text(rng, frames, len(data))
            path.with_suffix(".idx").write_bytes(text if rng.random() < 0.7 else damaged(rng, text))
        tracemalloc.reset_peak()
        begin = time.monotonic()
        try:
            read_all(path)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < 2**24 + 200 * len(data), f"seed {seed}: {peak:,} bytes for {len(data):,}"
        assert time.monotonic() - begin < 10 + len(data) / 1e5, f"seed {seed} takes for ever"
        opened += 1
    tracemalloc.stop()
    assert opened
