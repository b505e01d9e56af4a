"""Damaged and hostile annotations of all formats give only `DataError`, in bounded memory.

SSD_JAX_FUZZ_SECONDS=600 python -m pytest tests/data/test_annotation_fuzz.py makes a long run of it.
"""

import itertools
import json
import os
import random
import time
import tracemalloc

import numpy as np
import pytest

from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.coco import open_coco
from ssd_jax.data.sources.json_folder import open_json_folder
from ssd_jax.data.sources.manifest import open_manifest
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.data.sources.yolo import open_yolo
from ssd_jax.errors import DataError, UserError

SECONDS = float(os.environ.get("SSD_JAX_FUZZ_SECONDS", "0.5"))
THING = {"class_id": 0, "left": 1, "top": 2, "width": 3, "height": 4, "difficult": 0}
SIZE = [{"width": 9, "height": 9, "depth": 3}]
LABEL = {"image_size": SIZE, "annotations": [THING, THING]}
RECORD = {"file": "a.jpg", **LABEL, "categories": [{"class_id": 0, "name": "cat"}]}
LINE = {"source-ref": "a.jpg", "boxes": LABEL, "boxes-metadata": {"class-map": {"0": "cat"}}}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
    "annotations": [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0}] * 2,
    "categories": [{"id": 2, "name": "cat"}],
}
YOLO = {"path": ".", "all": ["all.txt", "JPEGImages"], "names": {"0": "cat"}, "nc": 1}
YOLO_LINES = b"0 0.5 0.5 0.2 0.2\n\n0 0.1 0.1 0.5 0.1 0.5 0.5"
XML = (
    "<annotation><size><width>9</width><height>9</height></size><object><name>cat</name>"
    "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    "</bndbox></object></annotation>"
)
VALUES = (
    None, True, 0, -1, 3, 0.5, 1e308, -1e308, 10**30, 10**400, 2**31, 2**63, float("nan"),
    float("inf"), "", "0", "1e9", "a.jpg", "../a.jpg", "/a.jpg", ".", "..", "a\0", "\ud800",
    "\u2028", "é" * 300, "s3://b/c", "s3://", "file://a.jpg", [], {}, [[]], [{}], [THING], {"0": 0},
    {"annotations": []},
)  # fmt: skip
TOKENS = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"{", b"[" * 3000, b"}", b'"', b",", b":", b"\\", b"\n",
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"1e308", b"0", b"-1", b"2147483648",
    b'"a":1,"a":2', b"\\ud800", b"<object>", b"</object>", b"<object><name>x</name></object>",
    b"<a>" * 3000, b"&lt;", b"&#0;", b"]]>", b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]>',
    b"&d;", b"<![CDATA[", b'<?xml version="1.0" encoding="utf-7"?>', b"<!--",
    b"<xmin>nan</xmin>", b"<width>1e300</width>",
)  # fmt: skip


def changed(rng, value):
    """A JSON value with something in it replaced, left out or doubled."""
    if rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, dict):
        copy = dict(value)
        for key in rng.sample(sorted(copy), k=min(len(copy), rng.choice((0, 1, 1, 2)))):
            if rng.random() < 0.2:
                del copy[key]
            else:
                copy[rng.choice((key, key, key, "annotations", "x"))] = changed(rng, copy[key])
        return copy
    if isinstance(value, list) and value:
        copy = [*value, *rng.choices(value, k=rng.choice((0, 0, 1)))]
        at = rng.randrange(len(copy))
        copy[at] = changed(rng, copy[at])
        return copy
    return value


def damaged(rng, text):
    """Text with bytes and stretches replaced, doubled, left out, cut off."""
    data = bytearray(text)
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        stretch = slice(at, at + rng.choice((1, 1, 5, 40)))
        match rng.randrange(5):
            case 0:
                data[stretch] = rng.choice(TOKENS)
            case 1:
                data[at : at + 1] = rng.randbytes(1)
            case 2:
                data[at:at] = data[stretch] * rng.choice((1, 3, 50))
            case 3:
                del data[stretch]
            case 4:
                del data[at:]
    return bytes(data)


def json_text(rng, value):
    return damaged(rng, json.dumps(changed(rng, value)).encode(errors="surrogatepass"))


def write_json_folder(rng, folder):
    for name in "ab":
        (folder / f"{name}.json").write_bytes(json_text(rng, RECORD | {"file": f"{name}.jpg"}))
    return lambda problems: open_json_folder(folder, problems=problems)


def write_manifest(rng, folder):
    lines = b"\n".join(json_text(rng, LINE | {"source-ref": f"{name}.jpg"}) for name in "ab")
    (folder / "x.manifest").write_bytes(lines)
    return lambda problems: open_manifest(
        folder / "x.manifest", read_remote=lambda url: b"", problems=problems
    )


def write_coco(rng, folder):
    (folder / "x.json").write_bytes(json_text(rng, COCO))
    return lambda problems: open_coco(folder / "x.json", problems=problems)


def write_voc(rng, folder):
    for name in "ab":
        (folder / "Annotations" / f"{name}.xml").write_bytes(damaged(rng, XML.encode()))
    return lambda problems: open_voc(folder, ("all",), problems=problems)


def write_yolo(rng, folder):
    (folder / "data.yaml").write_bytes(
        json_text(rng, rng.choice((YOLO, YOLO | {"all": "all.txt"})))
    )
    (folder / "all.txt").write_bytes(damaged(rng, b"a.jpg\nb.jpg"))
    for place, name in itertools.product((folder, folder / "JPEGImages"), "ab"):
        (place / f"{name}.txt").write_bytes(damaged(rng, YOLO_LINES))
    return lambda problems: open_yolo(folder / "data.yaml", ("all",), problems=problems)


@pytest.mark.parametrize(
    "write", [write_json_folder, write_manifest, write_coco, write_voc, write_yolo]
)
def test_only_data_errors_and_little_memory(write, tmp_path):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    for name in "ab":
        for place in (tmp_path, tmp_path / "JPEGImages"):
            (place / f"{name}.jpg").write_bytes(b"image")
    (tmp_path / "ImageSets/Main/all.txt").write_text("a\nb\n")
    opened, end = 0, time.monotonic() + SECONDS
    tracemalloc.start()
    try:
        for seed in itertools.count():
            if opened and time.monotonic() > end:
                break
            rng = random.Random(seed)
            read = write(rng, tmp_path)
            for policy in ("error", "skip"):
                try:
                    source = read(Problems(policy))
                except DataError:
                    continue
                except Exception as error:
                    if isinstance(error, UserError) and "have annotations" in str(error):
                        continue
                    raise AssertionError(f"seed {seed}: {error!r}") from error
                opened += 1
                check(source)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def check(source):
    """What every consumer relies on."""
    columns = source.annotations
    assert len(set(source.names)) == len(source)
    assert ((columns.boxes >= 0) & (columns.boxes <= 1)).all()
    assert (columns.boxes[:, 2:] > columns.boxes[:, :2]).all()
    assert ((columns.labels >= 0) & (columns.labels < len(source.classes))).all()
    assert columns.offsets[-1] == len(columns.labels)
    assert np.isfinite(columns.boxes).all()
    assert len(source.fingerprint) == 16
    assert source.describe()
    for index in range(len(source)):
        source[index]
