import json

import cv2
import jax
import numpy as np
import pytest
from scenes import found, truth
from tiny import tiny_config

from ssd_jax.cli import main
from ssd_jax.config_check import check
from ssd_jax.evaluation.metrics import (
    annotated_pixels,
    diagnose,
    headline,
    measure_detections,
    protocol_of,
    results_dict,
    summary,
    table,
)
from ssd_jax.experiment import build_source
from ssd_jax.files import to_json
from ssd_jax.runs.outcome import evaluate_variables
from ssd_jax.sharding import make_mesh
from ssd_jax.types import Detections
from ssd_jax.visualize.evaluation import draw_measures

CLASSES = ("cat", "dog")
SIZES = np.array([[100, 100]])


@pytest.fixture(scope="module")
def evaluation():
    """A cat that is found, a dog that is not."""
    return measure_detections(
        [truth([1, 1, 20, 20], [51, 51, 90, 90], labels=[0, 1])],
        [found([1, 1, 20, 20], scores=[0.9])],
        SIZES,
        num_classes=2,
    )


@pytest.fixture(scope="module")
def protocols_apart():
    """A cat found with an IoU of one half, one of two dogs, and a difficult dog where none is."""
    return measure_detections(
        [
            truth([1, 1, 20, 20], [51, 51, 90, 90], [1, 51, 20, 70], labels=[0, 1, 1]),
            truth([51, 51, 90, 90], labels=[1], difficult=[True]),
        ],
        [found([1, 1, 20, 10], [51, 51, 90, 90], scores=[0.9, 0.8], labels=[0, 1]), found()],
        np.array([[100, 100]] * 2),
        num_classes=2,
    )


# Of the dogs. COCO's cat is found at one of ten thresholds, mxnet-ssd's (IoU > 0.5) not at all, and
# that asks for three dogs: of an image without detections also for the difficult one.
VOC07, VOC12, COCO = 6 / 11, 1 / 2, 51 / 101
NUMBERS = {
    "map_voc07": (1 + VOC07) / 2,
    "map_voc12": (1 + VOC12) / 2,
    "map_voc07_difficult_counted": (1 + 4 / 11) / 2,
    "map_voc12_difficult_counted": (1 + 1 / 3) / 2,
    "map_mxnet": (0 + 4 / 11) / 2,
    "map_coco": (0.1 + COCO) / 2,
    "ap_voc07/cat": 1.0,
    "ap_voc12/cat": 1.0,
    "ap_voc07/dog": VOC07,
    "ap_voc12/dog": VOC12,
    "ap_coco/cat": 0.1,
    "ap_coco/dog": COCO,
}


def test_each_number_has_the_name_of_its_protocol(protocols_apart):
    assert summary(protocols_apart, CLASSES) == pytest.approx(NUMBERS)


def test_the_table_has_the_numbers_of_each_protocol(protocols_apart):
    lines = table(protocols_apart, diagnose(protocols_apart), CLASSES).splitlines()
    assert lines[2].split()[:5] == ["dog", "0.545", "0.500", "0.505", "2"]
    assert lines[3].split() == ["mean", "0.773", "0.750", "0.302"]
    assert lines[5] == (
        "with difficult objects counted 0.682, by mxnet-ssd's own metric 0.182 (11-point)"
    )


def test_without_coco_its_names_are_missing():
    bare = measure_detections([truth()], [found()], SIZES, num_classes=2, with_coco=False)
    assert not [name for name in summary(bare, CLASSES) if "coco" in name]
    assert results_dict(bare, diagnose(bare), CLASSES)["coco"] is None
    assert "COCO:" not in table(bare, diagnose(bare), CLASSES)


def test_the_pixels_of_voc_are_edges_for_coco():
    # 20 x 20 pixels, of which 20 x 10 are found: the IoU is one half by both.
    images = [truth([1, 1, 20, 20])], [found([1, 1, 20, 10], scores=[0.9])]
    evaluation = measure_detections(*images, SIZES, num_classes=1)
    assert evaluation.result.map == 1.0
    assert evaluation.coco.numbers["AP50"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("voc07", "mAP@.5 (VOC07 11-point) = 0.773"),
        ("voc12", "mAP@.5 (VOC12 area) = 0.750"),
        ("mxnet", "mAP@.5 (mxnet-ssd 11-point) = 0.182"),
        ("coco", "AP@[.5:.95] (COCO) = 0.302"),
    ],
)
def test_the_headline_names_the_metric(metric, text, protocols_apart):
    assert headline(protocols_apart, metric) == text


def test_the_diagnosis_has_the_threshold_of_the_metrics():
    images = [truth([1, 1, 20, 20])], [found([1, 1, 20, 10], scores=[0.9])]
    evaluation = measure_detections(*images, SIZES, num_classes=1, iou_threshold=0.75)
    diagnosis = diagnose(evaluation)
    assert diagnosis.sizes[0].ap == evaluation.result.map == 0.0
    assert diagnosis.errors.total["localisation"] == 1


def test_annotated_numbers_come_back_from_float32_as_they_were():
    height, width = 375, 499
    corners = np.random.default_rng(0).integers(1, height, (50, 4)).astype(float)
    edges = (corners - [1, 1, 0, 0]) / [width, height, width, height]
    np.testing.assert_array_equal(
        annotated_pixels(edges.astype(np.float32), (height, width)), corners
    )


def test_an_undefined_headline_says_why():
    nothing = measure_detections([truth()], [found()], SIZES, num_classes=1)
    assert headline(nothing, "coco") == "AP@[.5:.95] (COCO) = undefined: no objects"


def test_the_table_has_every_class_and_reasons_for_what_is_undefined(evaluation):
    lines = table(evaluation, diagnose(evaluation), CLASSES).splitlines()
    assert lines[1].split()[:5] == ["cat", "1.000", "1.000", "1.000", "1"]
    assert lines[3].split() == ["mean", "0.500", "0.500", "0.500"]
    text = "\n".join(lines)
    assert "APl -" in text
    assert "no APl, ARl: no objects of at least 96 x 96 pixels" in text
    assert "under 32 px: 1.000, 32 to 96 px: 0.000" in text
    assert "best 2 detections and objects: 1 correct" in text
    assert "-1" not in text
    assert lines[-2].startswith("VOC07 11-point, IoU >= 0.5")
    assert lines[-1].startswith("COCO, IoU 0.5:0.95")


def test_the_results_are_json(evaluation):
    written = to_json(results_dict(evaluation, diagnose(evaluation), CLASSES))
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert list(written) == [
        "metrics",
        "protocol",
        "classes",
        "coco",
        "sizes",
        "errors",
        "thresholds",
    ]
    assert written["errors"]["gains"]["missed"] == pytest.approx(0.5)


def test_pictures(evaluation, tmp_path):
    draw_measures(evaluation, diagnose(evaluation), tmp_path, classes=CLASSES)
    for name in ("precision_recall", "errors", "sizes"):
        assert cv2.imread(str(tmp_path / f"{name}.png")).std() > 0


def test_pictures_of_nothing_at_all(tmp_path):
    nothing = measure_detections([truth()], [found()], SIZES, num_classes=1)
    draw_measures(nothing, diagnose(nothing), tmp_path, classes=("cat",))
    for name in ("precision_recall", "errors", "sizes"):
        assert cv2.imread(str(tmp_path / f"{name}.png")) is not None


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("voc07", "VOC07 11-point, IoU >= 0.5, difficult ignored, +1 pixels, 1 images"),
        ("voc12", "VOC12 area, IoU >= 0.5, difficult ignored, +1 pixels, 1 images"),
        ("mxnet", "mxnet-ssd 11-point, IoU > 0.5, difficult ignored, continuous boxes, 1 images"),
        ("coco", "COCO, IoU 0.5:0.95, 101 recalls"),
    ],
)
def test_each_metric_has_its_own_protocol(metric, told):
    evaluation = measure_detections([truth()], [found()], SIZES, num_classes=1)
    assert protocol_of(evaluation, metric).startswith(told)


# ---- of a run ----


@pytest.mark.parametrize(("metric", "measured"), [("voc07", False), ("coco", True)])
def test_a_training_measures_coco_where_it_chooses_by_it(metric, measured, shapes):
    config = tiny_config(shapes, evaluate__metric=metric)
    check(config)

    def finds_nothing(variables, canvas, extent):
        rows = len(canvas)
        return Detections(
            np.zeros((rows, 1, 4), np.float32),
            np.zeros((rows, 1), np.float32),
            np.zeros((rows, 1), np.int32),
            np.zeros((rows, 1), bool),
        )

    source = build_source(config, "val")
    mesh = make_mesh(jax.devices()[:1])
    result = evaluate_variables(config, finds_nothing, None, source=source, mesh=mesh)
    assert ("map_coco" in summary(result, source.classes)) == measured
    assert result.image_sizes.tolist() == source.annotations.sizes.tolist()


def test_a_run_leaves_coco_sizes_and_errors(tiny_run):
    report = json.loads((tiny_run / "report.json").read_text())
    assert report["coco"]["AP"] == report["metrics"]["map_coco"]
    assert {"AP50", "AR100", "undefined", "protocol"} <= report["coco"].keys()
    assert (
        sum(each["objects"] for each in report["sizes"] if each["unit"] == "pixels")
        == (report["errors"]["total"]["objects"])
    )
    for name in ("errors", "sizes"):
        assert cv2.imread(str(tiny_run / f"pictures/{name}.png")) is not None


def test_an_evaluation_is_printed_before_it_is_written(tiny_run, tmp_path, capsys):
    command = ["evaluate", "--workdir", str(tiny_run), "--out"]
    (tmp_path / "evaluation.json").mkdir()
    assert main([*command, str(tmp_path)]) == 2
    assert "(VOC07 11-point) = 0." in capsys.readouterr().out
    (tmp_path / "file").touch()
    assert main([*command, str(tmp_path / "file")]) == 2
    told = capsys.readouterr()
    assert "file: expected a folder to write to" in told.err
    assert not told.out


def test_the_verb_chooses_the_metric_and_writes_what_the_report_has(tiny_run, tmp_path, capsys):
    command = ["evaluate", "--workdir", str(tiny_run), "--out", str(tmp_path)]
    # The best checkpoint is the one of the run, by whatever it is measured now.
    assert main([*command, "--step", "best", "--config.evaluate.metric=coco"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("AP@[.5:.95] (COCO) = 0.")
    report = json.loads((tiny_run / "report.json").read_text())
    again = json.loads((tmp_path / "evaluation.json").read_text())
    assert again["coco"]["AP50"] == pytest.approx(report["coco"]["AP50"], abs=0.02)
    assert (tmp_path / "errors.png").is_file()
    # Of two such files one can tell later what was measured otherwise.
    assert again["run_changes"] == {"evaluate.metric": {"run": "voc07", "here": "coco"}}
    assert again["protocol"]["checkpoint"] == "best"
    assert again["protocol"]["headline"].startswith("COCO, IoU 0.5:0.95")
    assert report["protocol"]["checkpoint"] == "last"
    assert report["protocol"]["headline"].startswith("VOC07 11-point")


def test_what_was_not_measured_is_no_lack_of_objects():
    evaluation = measure_detections(
        [truth([0, 0, 5, 5])],
        [found([0, 0, 5, 5], scores=[0.9])],
        np.array([(10, 10)]),
        num_classes=1,
    )
    assert headline(evaluation._replace(coco=None), "coco").endswith("was not measured")
