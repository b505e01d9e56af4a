"""COCO's metric on published cases; SSD_JAX_EVAL_CASES names their folder."""

import numpy as np
import pytest
from eval_cases import as_arrays, labels_in, load_cases

from ssd_jax.evaluation.coco import CocoObjects, evaluate_coco


@pytest.fixture(scope="module")
def cases(request):
    return load_cases(request, "coco")


def objects_of(image):
    sides = [np.subtract(each["box"][2:], each["box"][:2]) for each in image["gts"]]
    areas = [each.get("area", np.prod(s)) for each, s in zip(image["gts"], sides, strict=True)]
    crowd = [bool(each.get("iscrowd", 0)) for each in image["gts"]]
    return CocoObjects(np.array(areas, float), np.array(crowd, bool))


def disagreements(case):
    names = labels_in(case)
    truths, detections = as_arrays(case, names)
    result = evaluate_coco(
        truths,
        detections,
        num_classes=len(names),
        objects=[objects_of(image) for image in case["images"]],
    )
    pairs = {name: (result.numbers[name], value) for name, value in case["expected"].items()}
    per_class = dict(zip(names, result.per_class, strict=True))
    for label, value in case.get("expected_ap_per_category", {}).items():
        pairs[f"AP of {label}"] = (per_class.get(label), value)
    for name, (got, expected) in pairs.items():
        expected = None if expected == -1 else expected
        undefined = None in (got, expected)
        same = got is expected if undefined else abs(got - expected) <= case["tolerance"]
        if not same:
            yield f"{case['name']} {name}: got {got}, expected {expected}"


def test_agrees_with_every_case(cases):
    assert cases, "no COCO case in the folder"
    assert not [line for case in cases for line in disagreements(case)]
