import subprocess
import sys

import cv2
import numpy as np
import pytest

from ssd_jax.errors import UserError
from ssd_jax.evaluation.voc import GroundTruth, ScoredBoxes, evaluate_voc
from ssd_jax.visualize.boxes import (
    CORRECT,
    DIFFICULT,
    FALSE,
    MISSED,
    detection_grid,
    draw_boxes,
    image_grid,
    save_png,
    training_grid,
)
from ssd_jax.visualize.curves import plot_curves
from ssd_jax.visualize.evaluation import plot_precision_recall
from ssd_jax.visualize.style import PALETTE

CLASSES = ("disc", "square")
BOX = np.array([[0.25, 0.25, 0.75, 0.75]], np.float32)
ELSEWHERE = np.array([[0.05, 0.05, 0.2, 0.2]], np.float32)
LABEL, SECOND = np.array([0]), np.array([1])


def grey(height=400, width=400):
    return np.full((height, width, 3), 128, np.uint8)


def has(image, color):
    """Whether some pixel has exactly this colour."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return bool(np.all(image == rgb, axis=-1).any())


def read_png(path):
    image = cv2.imread(str(path))
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


# ---- draw_boxes ----


def test_a_box_is_drawn_where_it_lies():
    image = grey()
    drawn = draw_boxes(image, BOX, LABEL, classes=CLASSES)
    blue = [0x00, 0x72, 0xB2]
    assert drawn.shape == image.shape
    for y, x in ((200, 100), (200, 300), (300, 200), (100, 200)):  # the middle of each side
        assert drawn[y, x].tolist() == blue
    assert drawn[200, 200].tolist() == drawn[30, 30].tolist() == [128, 128, 128]
    assert np.all(image == 128)


def test_classes_have_their_own_colours():
    boxes, labels = np.concatenate([BOX, ELSEWHERE]), np.array([0, 1])
    drawn = draw_boxes(grey(), boxes, labels, classes=CLASSES)
    assert has(drawn, PALETTE[0])
    assert has(drawn, PALETTE[1])


def test_a_score_makes_the_tag_longer():
    bare = draw_boxes(grey(), BOX, LABEL, classes=CLASSES)
    scored = draw_boxes(grey(), BOX, LABEL, classes=CLASSES, scores=np.array([0.5]))
    above = slice(85, 97)  # rows of the tag
    assert np.sum(scored[above] != 128) > 1.5 * np.sum(bare[above] != 128)


def test_tags_of_equal_boxes_do_not_hide_each_other():
    once = draw_boxes(grey(), BOX, LABEL, classes=CLASSES)
    twice = draw_boxes(grey(), BOX[[0, 0]], np.array([0, 0]), classes=CLASSES)
    assert np.sum(twice != 128) > 1.1 * np.sum(once != 128)


@pytest.mark.parametrize(
    ("size", "drawn_size"),
    [((64, 128), (320, 640)), ((320, 400), (320, 400)), ((4, 1024), (16, 4096))],
)
def test_small_images_are_enlarged(size, drawn_size):
    drawn = draw_boxes(grey(*size), BOX, LABEL, classes=CLASSES)
    assert drawn.shape == (*drawn_size, 3)


def test_lines_grow_with_the_image():
    widths = []
    for side in (400, 1200):
        drawn = draw_boxes(grey(side, side), BOX, LABEL, classes=CLASSES)
        widths.append(np.sum(np.any(drawn[side // 2] != 128, axis=-1)))
    assert widths[1] > 1.5 * widths[0]


def test_a_box_over_the_whole_image_and_one_without_area_can_be_drawn():
    boxes = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0.5]], np.float32)
    drawn = draw_boxes(grey(), boxes, np.array([0, 1, 0]), classes=CLASSES)
    assert has(drawn[:2], PALETTE[0])


def test_no_box_leaves_the_image_as_it_is():
    drawn = draw_boxes(grey(), BOX[:0], LABEL[:0], classes=CLASSES)
    np.testing.assert_array_equal(drawn, grey())


# ---- mosaics ----


def test_mosaic_places_images_row_by_row():
    tiles = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    picture = image_grid(tiles, columns=2, gap=2)
    assert picture.shape == (10, 14, 3)
    assert picture[0, 0, 0] == 10
    assert picture[0, 8, 0] == 20
    assert picture[6, 0, 0] == 30
    assert np.all(picture[6:, 8:] == 255)
    assert np.all(picture[4:6] == 255)


def test_mosaic_centres_smaller_images():
    tiles = [np.zeros((4, 4, 3), np.uint8), np.zeros((2, 8, 3), np.uint8)]
    picture = image_grid(tiles, columns=1, gap=0)
    assert picture.shape == (6, 8, 3)
    assert np.all(picture[:4, :2] == 255)
    assert np.all(picture[:4, 2:6] == 0)


def test_mosaic_of_nothing_is_refused():
    with pytest.raises(UserError, match="no image"):
        image_grid([], columns=2)


def test_training_mosaic_draws_only_valid_boxes():
    images = np.full((3, 64, 64, 3), 127.6, np.float32)
    boxes = np.stack([np.concatenate([BOX, ELSEWHERE])] * 3)
    labels = np.array([[0, 1]] * 3)
    valid = np.array([[True, False]] * 3)
    picture = training_grid(images, boxes, labels, valid, classes=CLASSES, columns=2)
    assert picture.shape == (648, 648, 3)
    assert has(picture, PALETTE[0])
    assert not has(picture, PALETTE[1])
    assert picture[10, 10].tolist() == [128, 128, 128]


def body(picture, *, height=200):
    """The left and right halves of a detection mosaic without its legend."""
    image = picture[-16 - height : -16]
    inside = np.flatnonzero(np.any(image != 255, axis=(0, 2)))
    image = image[:, inside[0] : inside[-1] + 1]
    return np.split(image[:, : image.shape[1] // 2 * 2], 2, axis=1)


@pytest.mark.parametrize(
    ("found", "label", "difficult", "left", "right"),
    [
        (BOX, LABEL, False, CORRECT, CORRECT),
        (BOX, SECOND, False, MISSED, FALSE),
        (ELSEWHERE, LABEL, False, MISSED, FALSE),
        (BOX, LABEL, True, DIFFICULT, DIFFICULT),
    ],
)
def test_detection_mosaic_tells_the_outcomes_apart(found, label, difficult, left, right):
    picture = detection_grid(
        [grey()],
        [GroundTruth(BOX, LABEL, np.array([difficult]))],
        [ScoredBoxes(found, np.array([0.9]), label)],
        classes=CLASSES,
        height=200,
    )
    styles = {CORRECT, FALSE, MISSED, DIFFICULT}
    for half, style in zip(body(picture), (left, right), strict=True):
        assert {each for each in styles if has(half, each.color)} == {style}


def test_detection_mosaic_leaves_out_low_scores():
    picture = detection_grid(
        [grey(), grey()],
        [GroundTruth(BOX[:0], LABEL[:0], np.zeros(0, bool))] * 2,
        [ScoredBoxes(BOX, np.array([0.4]), LABEL)] * 2,
        classes=CLASSES,
        columns=1,
        height=200,
    )
    colors = [style.color for style in (CORRECT, FALSE, MISSED)]
    below_the_legend = picture[-16 - 200 - 24 - 200 :]
    assert not any(has(below_the_legend, color) for color in colors)


def test_an_image_that_is_much_wider_than_high_does_not_make_a_mosaic_of_any_width():
    """A page shows it as JPEG, which has 65,500 pixels at most."""
    picture = detection_grid(
        [grey(2, 4000)],
        [GroundTruth(BOX, LABEL, np.array([False]))],
        [ScoredBoxes(BOX, np.array([0.9]), LABEL)],
        classes=CLASSES,
        height=200,
    )
    assert picture.shape[1] == 2 * 4 * 200 + 4 + 2 * 16


def test_save_png_round_trip(tmp_path):
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    save_png(tmp_path / "folder" / "a.png", image)
    np.testing.assert_array_equal(read_png(tmp_path / "folder" / "a.png"), image)


# ---- plots ----

TRAIN = [
    {"step": step, "split": "train", "loss": 9 / step, "box_loss": 4 / step, "lr": 0.01}
    for step in range(1, 41)
]
VAL = [
    {"step": step, "split": "val", "map_voc07": step / 50, "map_voc12": None} for step in (20, 40)
]


def test_curves_have_a_panel_for_each_kind_of_value(tmp_path):
    plot_curves(TRAIN + VAL, tmp_path / "new" / "all.png")
    plot_curves(TRAIN, tmp_path / "train.png")
    plot_curves(VAL, tmp_path / "val.png")
    plots = [read_png(tmp_path / name) for name in ("new/all.png", "train.png", "val.png")]
    heights = [plot.shape[0] for plot in plots]
    assert heights[0] > heights[1] > heights[2]
    assert has(plots[1], PALETTE[1])  # the second loss
    assert has(plots[2], PALETTE[0])
    assert not has(plots[2], PALETTE[1])  # map is None: no curve


def test_nothing_to_plot_is_told(tmp_path):
    with pytest.raises(UserError, match="no loss, lr or map"):
        plot_curves([{"step": 1, "split": "train", "images": 3}], tmp_path / "a.png")


def test_precision_recall_has_a_curve_for_each_class_with_objects(tmp_path):
    result = evaluate_voc(
        [GroundTruth(BOX * 100, LABEL, np.array([False]))],
        [ScoredBoxes(BOX * 100, np.array([0.9]), LABEL)],
        num_classes=2,
    )
    plot_precision_recall(result, ("a$b_c", "square"), tmp_path / "pr.png")
    image = read_png(tmp_path / "pr.png")
    assert has(image, PALETTE[0])
    assert not has(image, PALETTE[1])


def test_precision_recall_of_many_classes_shows_those_with_the_most_objects(tmp_path):
    labels = np.concatenate([np.arange(80), [79]])
    boxes = np.repeat(BOX * 100, len(labels), axis=0)
    truth = GroundTruth(boxes, labels, np.zeros(len(labels), bool))
    result = evaluate_voc([truth], [ScoredBoxes(boxes, np.ones(len(labels)), labels)],
                          num_classes=80)  # fmt: skip
    few = evaluate_voc([truth], [ScoredBoxes(boxes[:0], np.zeros(0), labels[:0])], num_classes=80)
    names = [f"class {number} " * 20 for number in range(80)]
    for each in (result, few):
        plot_precision_recall(each, names, tmp_path / "pr.png")
    height, width = read_png(tmp_path / "pr.png").shape[:2]
    assert height > 0.8 * width  # with room for a legend of 30


def test_precision_recall_without_any_object_or_detection(tmp_path):
    empty = [ScoredBoxes(BOX[:0], np.zeros(0), LABEL[:0])]
    for labels in (LABEL, LABEL[:0]):
        truth = [GroundTruth(BOX[: len(labels)], labels, np.zeros(len(labels), bool))]
        result = evaluate_voc(truth, empty, num_classes=1, plus_one=False)
        plot_precision_recall(result, ("disc",), tmp_path / "pr.png")
        assert read_png(tmp_path / "pr.png").shape[2] == 3


def test_import_leaves_matplotlib_out():
    modules = "ssd_jax.visualize.boxes, ssd_jax.visualize.curves, ssd_jax.visualize.evaluation"
    code = f"import sys, {modules}; print('matplotlib' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
