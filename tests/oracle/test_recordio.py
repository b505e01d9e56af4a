"""RecordIO files that MXNet's own writers made, and what MXNet reads from them.

`det_*.json` lists the records of `det_*.rec`: key, offset, parts (flag, length), hash of the
payload, and what stands in it.
"""

import hashlib
import json

import numpy as np
import pytest
from reference import vectors

from ssd_jax.data.sources.base import Problems
from ssd_jax.data.sources.recordio import open_recordio
from ssd_jax.data.sources.recordio_file import HEAD_BYTES, RecordFile, frame

pytestmark = pytest.mark.parametrize("path", vectors("det", suffix=".json"))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def expected_objects(record):
    """The objects of a record without the rows of class -1 that stand for none."""
    width = record["det"]["object_width"]
    rows = np.array(record["det"]["objects"], np.float32).reshape(-1, width)
    return rows[rows[:, 0] >= 0]


def test_the_framing_is_that_of_mxnet(path):
    records = json.loads(path.read_text())["records"]
    file = RecordFile(path.with_suffix(".rec"))
    offsets = file.find_records(pytest.fail).tolist()
    assert offsets == [record["offset"] for record in records]
    again = []
    for record in records:
        payload = file.payload(record["offset"])
        assert (len(payload), sha256(payload)) == (record["payload_len"], record["payload_sha256"])
        again.append(frame(payload))
        parts, at = [], 0
        while at < len(again[-1]):
            word = int.from_bytes(again[-1][at + 4 : at + HEAD_BYTES], "little")
            flag, length = word >> 29, word & (2**29 - 1)
            parts.append([flag, length])
            at += HEAD_BYTES + length + -length % 4
        assert parts == record["parts"]
    assert b"".join(again) == path.with_suffix(".rec").read_bytes()


@pytest.mark.parametrize("indexed", [True, False])
def test_labels_and_images_are_those_of_mxnet(path, indexed, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    records = json.loads(path.read_text())["records"]
    place = tmp_path / "a.rec"
    place.write_bytes(path.with_suffix(".rec").read_bytes())
    if indexed:
        place.with_suffix(".idx").write_bytes(path.with_suffix(".idx").read_bytes())
    problems = Problems("skip")
    source = open_recordio(place, problems=problems)
    usable = [record for record in records if record.get("det")]
    assert problems.counts == ({"SSD144": bad} if (bad := len(records) - len(usable)) else {})
    assert source.names == [str(record["key" if indexed else "id"]) for record in usable]
    for example, record in zip(source, usable, strict=True):
        assert len(example.image) == record["image_len"]
        assert sha256(example.image) == record["image_sha256"]
        objects = expected_objects(record)
        np.testing.assert_array_equal(example.labels, objects[:, 0])
        np.testing.assert_array_equal(example.boxes, objects[:, 1:5])
        flags = objects[:, 5] > 0 if objects.shape[1] > 5 else np.zeros(len(objects), bool)
        np.testing.assert_array_equal(example.difficult, flags)
        if record["det"]["header_width"] == 4:
            assert list(example.size) == record["image_hw"]
