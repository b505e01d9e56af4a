"""Videos that end before their header says so."""

import shutil

import cv2
import pytest
from predict_files.fake import Fake, write_video

from ssd_jax.predict_files.inputs import find_items, read_frames
from ssd_jax.predict_files.run import run_prediction


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "street.avi")


def test_a_video_that_ends_early_is_told_and_what_was_read_is_kept(video, tmp_path, capsys):
    shutil.copy(video, tmp_path / "whole.avi")
    frames = video.read_bytes().split(b"00dc")  # this name is before each frame of an AVI
    (tmp_path / "cut.avi").write_bytes(b"00dc".join(frames[:6]))
    run_prediction(Fake(), [str(tmp_path)], tmp_path / "found", draw=False)
    lines = {path.stem: path.read_text().splitlines() for path in (tmp_path / "found").iterdir()}
    assert len(lines["whole"]) == 10
    count = len(lines["cut"])
    assert 0 < count < 6
    warning = f"cut.avi: its header has 10 frames, of which {count} could be read"
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize(
    ("declared", "rate", "whole"),
    [(12, 5, True), (13, 5, False), (0, 0, True), (-9e18, 5, True), (13, 0, False),
     (20, 10, True)],
    # The last: frames of a variable rate, which the header counts as duration times another rate.
)  # fmt: skip
def test_what_a_header_counts_is_not_exact(declared, rate, whole, video, monkeypatch, capsys):
    class Header:
        def __init__(self, path):
            self.video = capture(path)
            self.own = {cv2.CAP_PROP_FRAME_COUNT: declared, cv2.CAP_PROP_FPS: rate}

        def get(self, which):
            return self.own.get(which, self.video.get(which))

        def __getattr__(self, name):
            return getattr(self.video, name)

    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", Header)
    frames = read_frames(find_items([str(video)]), 32, unreadable=pytest.fail)
    assert len(list(frames)) == 10
    assert ("damaged or cut off" not in capsys.readouterr().err) == whole
