"""What is found in folders that are searched, and what is left out."""

import os

import cv2
import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.predict_files import inputs
from ssd_jax.predict_files.inputs import find_items


def image_at(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((20, 40, 3), 200, np.uint8))
    return path


def names(*places, **words):
    return [item.name for item in find_items([str(place) for place in places], **words)]


def test_linked_folders_are_searched(tmp_path):
    folder = tmp_path / "given"
    image_at(folder / "x/a.jpg")
    image_at(tmp_path / "elsewhere/b.jpg")
    (folder / "y").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder / "x")
    (folder / "x/up").symlink_to(tmp_path)
    assert names(folder) == ["x/a.jpg", "y/b.jpg"]


def test_hidden_files_and_folders_are_passed_over_unless_asked_for(tmp_path, monkeypatch):
    folder = tmp_path / ".given"
    image_at(folder / "a.jpg")
    hidden = image_at(folder / ".ipynb_checkpoints/a-checkpoint.jpg")
    image_at(folder / ".b.jpg")
    assert names(folder) == ["a.jpg"]
    assert names(hidden.parent) == ["a-checkpoint.jpg"]
    keys = [f"s3://b/.in/{path.relative_to(folder)}" for path in sorted(folder.glob("**/*.jpg"))]
    monkeypatch.setattr(inputs, "list_urls", lambda prefix: keys)
    assert names("s3://b/.in") == names("s3://b/.in/**") == ["a.jpg"]
    assert names("s3://b/.in/.*/*") == ["a-checkpoint.jpg"]


@pytest.mark.parametrize("place", ["", "/*", "/**", "/**/*.jpg"])
def test_results_of_an_earlier_command_are_no_images(place, tmp_path, capsys):
    image_at(tmp_path / "a.jpg")
    drawing = image_at(tmp_path / "found/new/b.jpg")
    assert names(f"{tmp_path}{place}", out=tmp_path / "found") == ["a.jpg"]
    told = capsys.readouterr().err
    if place != "/*":
        assert told == (
            f"1 image left out because of --out, {tmp_path / 'found'}, such as {drawing}\n"
        )
    # What is asked for is read, and so is a folder that is to hold the results as well.
    assert names(drawing, out=tmp_path / "found") == ["b.jpg"]
    assert names(tmp_path / "found", out=tmp_path / "found") == ["new/b.jpg"]
    assert names(tmp_path / "found", out=tmp_path) == ["new/b.jpg"]


def test_the_results_may_be_all_there_is(tmp_path, monkeypatch):
    image_at(tmp_path / "found/b.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no images or videos there"):
        names(os.curdir, out=tmp_path / "found")
