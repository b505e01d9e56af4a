import json
import math

import numpy as np
import pytest
from scenes import found, random_problem, truth

from ssd_jax.evaluation.sizes import average_precision_by_size
from ssd_jax.evaluation.voc import evaluate_voc

# Of 16, 64 and 160 pixels, both corners inside.
SMALL, MEDIUM, LARGE = [1, 1, 16, 16], [101, 1, 164, 64], [201, 1, 360, 160]
SIZES = np.array([[640, 640]])


def by_name(truths, detections, sizes=SIZES, **options):
    results = average_precision_by_size(truths, detections, sizes, **{"num_classes": 1} | options)
    return {each.name: (each.objects, each.ap) for each in results}


def test_ranges_have_readable_names():
    assert list(by_name([truth()], [found()])) == [
        "under 32 px",
        "32 to 96 px",
        "over 96 px",
        "under 1/16",
        "1/16 to 1/8",
        "1/8 to 1/4",
        "1/4 to 1/2",
        "over 1/2",
    ]


def test_each_size_is_measured_by_itself():
    result = by_name([truth(SMALL, MEDIUM, LARGE)], [found(SMALL, LARGE, scores=[0.9, 0.8])])
    assert result["under 32 px"] == result["over 96 px"] == (1, 1.0)
    assert result["32 to 96 px"] == (1, 0.0)
    # 16, 64 and 160 of 640 pixels: a 40th, a tenth, a quarter
    assert result["under 1/16"] == result["1/4 to 1/2"] == (1, 1.0)
    assert result["1/16 to 1/8"] == (1, 0.0)
    assert result["1/8 to 1/4"] == result["over 1/2"] == (0, None)


@pytest.mark.parametrize(("side", "name"), [(31, "under 32 px"), (32, "32 to 96 px")])
def test_sizes_count_both_corners(side, name):
    assert by_name([truth([1, 1, side, side])], [found()])[name] == (1, 0.0)


def test_a_relative_size_depends_on_the_image():
    images = [truth(LARGE)] * 2, [found(LARGE, scores=[0.9]), found()]
    result = by_name(*images, sizes=np.array([[640, 640], [170, 380]]))
    assert result["1/4 to 1/2"] == (1, 1.0)
    assert result["over 1/2"] == (1, 0.0)
    assert result["over 96 px"] == (2, 0.5)


@pytest.mark.parametrize(("false_alarm", "ap"), [([500, 1, 515, 16], 1 / 2), (LARGE, 1.0)])
def test_false_alarms_count_in_their_own_size(false_alarm, ap):
    result = by_name([truth(SMALL)], [found(false_alarm, SMALL, scores=[0.9, 0.8])])
    assert result["under 32 px"] == (1, ap)


def test_difficult_objects_are_not_asked_for():
    result = by_name([truth(SMALL, difficult=[True])], [found(SMALL, scores=[0.9])])
    assert result["under 32 px"] == (0, None)


def test_where_all_is_of_one_size_its_average_is_that_of_the_metric():
    for seed in range(5):
        truths, detections = random_problem(seed)  # of at most 20 pixels
        sizes = np.full((len(truths), 2), 30)
        expected = evaluate_voc(truths, detections, num_classes=3).map
        result = by_name(truths, detections, sizes, num_classes=3)
        assert result["under 32 px"][1] == pytest.approx(expected)


def test_every_object_has_one_size():
    truths, detections = random_problem(3)
    sizes = np.full((len(truths), 2), 40)
    results = average_precision_by_size(truths, detections, sizes, num_classes=3)
    objects = sum(int(np.sum(~each.difficult)) for each in truths)
    for unit in ("pixels", "image"):
        assert sum(each.objects for each in results if each.unit == unit) == objects


def test_json_has_no_infinity():
    last = average_precision_by_size([truth()], [found()], SIZES, num_classes=1)[2]
    assert last.high == math.inf
    assert json.loads(json.dumps(last.to_dict(), allow_nan=False)) == {
        "name": "over 96 px",
        "unit": "pixels",
        "low": 96,
        "high": None,
        "objects": 0,
        "ap": None,
    }
