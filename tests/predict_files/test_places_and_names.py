"""Results of images with odd names and places, and what they must not overwrite or reveal."""

import json
import os

import cv2
import numpy as np
import pytest
from predict_files.fake import Fake

from ssd_jax.predict_files.run import FORMATS, run_prediction


@pytest.fixture(scope="module")
def jpeg():
    return cv2.imencode(".jpg", np.full((20, 40, 3), 200, np.uint8))[1].tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_a_name_that_is_not_utf_8(format, jpeg, tmp_path):
    image = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    image.write_bytes(jpeg)
    run_prediction(Fake(), [str(tmp_path)], tmp_path / "out", format=format, draw=True)
    files = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".png"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    assert all("caf\\udce9" in text for text in texts)
    assert any(path.name == os.fsdecode(b"caf\xe9.png") for path in (tmp_path / "out").iterdir())
    if format in ("json", "jsonl"):
        assert json.loads(texts[0])["image"] == str(image)
