"""Results of images with odd names and places, and what they must not overwrite or reveal."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from data.loopback import WebServer
from predict_files.fake import Fake

from ssd_jax.errors import UserError
from ssd_jax.predict_files.inputs import find_items
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


@pytest.mark.parametrize("linked", [False, True])
def test_a_mask_beside_an_image_is_not_replaced_by_a_drawing(linked, jpeg, tmp_path):
    folder, other = tmp_path / "given", tmp_path / "other"
    for path in (folder, other):
        path.mkdir()
        (path / f"{path.name}.jpg").write_bytes(jpeg)
    image = folder / "given.jpg"
    if linked:
        image.rename(other / "1234.jpg")
        image.symlink_to(other / "1234.jpg")
    mask = folder / "given.png"
    mask.write_bytes(b"a mask")
    where = r"given\.png: the drawing of .*given\.jpg would overwrite this file, which may be its m"
    for place, words in ((image, {}), (f"{folder}/*.jpg", {"format": "voc", "draw": True})):
        with pytest.raises(UserError, match=where):
            run_prediction(Fake(), [str(place)], folder, **words)
    # Nor is what lies beside another image.
    (other / "x.json").write_text("annotations")
    places = [str(shutil.copy(image, tmp_path / "x.jpg")), str(other / "other.jpg")]
    with pytest.raises(UserError, match=r"x\.json: the detections in .*x\.jpg would overwrite"):
        run_prediction(Fake(), places, other)
    assert mask.read_bytes() == b"a mask"
    run_prediction(Fake(), [str(image)], folder, draw=False)
    run_prediction(Fake(), [str(image)], tmp_path / "out")
    run_prediction(Fake(), [str(image)], tmp_path / "out")


def test_what_may_be_a_password_is_in_no_file(jpeg, tmp_path):
    with WebServer() as server:
        server.files["/a.jpg"] = jpeg
        for format in FORMATS:
            words = {"format": format, "draw": False}
            run_prediction(Fake(), [f"{server.url}/a.jpg?key=SECRET"], tmp_path, **words)
        found = json.loads((tmp_path / "a.json").read_text())
        assert found["image"] == f"{server.url}/a.jpg"
        assert not [path for path in tmp_path.iterdir() if "SECRET" in path.read_text()]
        places = [f"{server.url}/a.jpg?id={number}" for number in range(2)]
        run_prediction(Fake(), places, tmp_path / "several", format="jsonl")
        (lines,) = (tmp_path / "several").iterdir()
        assert len(lines.read_text().splitlines()) == 2


def test_a_url_that_cannot_be_read_does_not_stop_the_others(jpeg, tmp_path, capsys):
    with WebServer() as server, WebServer() as chunked:
        server.files["/a.jpg"] = chunked.files["/b.jpg"] = jpeg
        chunked.with_length = False
        places = [f"{chunked.url}/b.jpg", f"{server.url}/a.jpg"]
        with pytest.raises(UserError, match=r"^1 of 2 images could not be read"):
            run_prediction(Fake(), places, tmp_path, draw=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert "SSD163" in (told := capsys.readouterr().err)
    assert "the server does not report the size of the file" in told


@pytest.mark.parametrize("format", FORMATS)
def test_a_place_for_results_that_is_none_is_told_before_the_work(format, jpeg, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg)
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out: expected a folder to write to"):
        run_prediction(Fake(), [str(tmp_path)], tmp_path / "out", format=format)


def test_a_glob_means_images_and_videos_like_a_folder(jpeg, tmp_path, capsys):
    for name in ("a.jpg", "b.JPEG"):
        (tmp_path / name).write_bytes(jpeg)
    for name in ("a.json", "notes.txt"):
        (tmp_path / name).touch()
    places = [item.name for item in find_items([f"{tmp_path}/*"])]
    assert places == ["a.jpg", "b.JPEG"]
    assert "2 files left out, such as " in capsys.readouterr().err
    shutil.copy(tmp_path / "a.jpg", tmp_path / "photo_1")
    assert [item.name for item in find_items([f"{tmp_path}/photo_*"])] == ["photo_1"]
