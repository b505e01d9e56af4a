"""The metric on published and hand-derived cases; SSD_JAX_EVAL_CASES names their folder."""

import pytest
from eval_cases import as_arrays, labels_in, load_cases

from ssd_jax.evaluation.voc import evaluate_voc


@pytest.fixture(scope="module")
def cases(request):
    return load_cases(request, "voc")


def disagreements(case):
    expected_labels = (label for entry in case["expected"] for label in entry["per_class"])
    names = list(dict.fromkeys([*labels_in(case), *expected_labels]))
    truths, detections = as_arrays(case, names)
    for entry in case["expected"]:
        setting = {
            "iou_threshold": float(entry["iou"]),
            "plus_one": bool(entry.get("plus_one", True)),
            "iou_rule": entry.get("iou_rule", ">="),
        }
        result = evaluate_voc(truths, detections, num_classes=len(names), **setting)
        per_class = dict(zip(names, result.per_class, strict=True))
        means = [name for name in ("map11", "map") if name in entry]
        pairs = {name: (getattr(result, name), entry[name]) for name in means}
        for label, expected in entry["per_class"].items():
            for name, value in expected.items():
                pairs[f"{label}.{name}"] = (getattr(per_class[label], name), value)
        for name, (got, expected) in pairs.items():
            undefined = None in (got, expected)
            same = got is expected if undefined else abs(got - expected) <= case["tolerance"]
            if not same:
                yield f"{case['name']} {setting} {name}: got {got}, expected {expected}"


def test_agrees_with_every_case(cases):
    assert cases, "no VOC case in the folder"
    assert not [line for case in cases for line in disagreements(case)]
