"""The pictures that a run leaves of its detections."""

from unittest.mock import Mock

import cv2
import numpy as np

from ssd_jax.data.sources.memory import source_from_arrays
from ssd_jax.evaluation.metrics import Evaluation
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes
from ssd_jax.visualize.boxes import CORRECT
from ssd_jax.visualize.run import draw_detections


def test_images_of_data_that_do_not_tell_their_sizes_are_drawn(tmp_path):
    grey = np.full((200, 400, 3), 128, np.uint8)
    file = cv2.imencode(".png", grey)[1].tobytes()
    source = source_from_arrays([file], [[[0.25, 0.25, 0.75, 0.75]]], [[0]], ["disc"])
    assert source[0].size is None
    boxes = np.array([[101, 51, 301, 151]])  # in pixels, counted from 1
    evaluation = Mock(
        spec=Evaluation,
        ground_truths=[GroundTruth(boxes, np.array([0]), np.array([False]))],
        detections=[ScoredBoxes(boxes, np.array([0.9]), np.array([0]))],
    )
    draw_detections(source, evaluation, tmp_path / "found.png", images=[0], iou_threshold=0.5)
    picture = cv2.imread(str(tmp_path / "found.png"))[..., ::-1]
    colour = [int(CORRECT.color[i : i + 2], 16) for i in (1, 3, 5)]
    assert (picture == colour).all(axis=-1).any()


def test_the_users_own_style_does_not_reach_our_pictures(tmp_path):
    import matplotlib

    from ssd_jax.visualize.style import plot_style, save_plot

    def drawn(name):
        with plot_style() as new_figure:
            figure = new_figure(2, 1)
            figure.subplots().set_title("title")
            save_plot(figure, tmp_path / name)
        return (tmp_path / name).read_bytes()

    plain = drawn("plain.png")
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        assert drawn("styled.png") == plain
        assert dict(matplotlib.rcParams) == before
