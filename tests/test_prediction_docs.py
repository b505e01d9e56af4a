"""What docs/prediction.md shows in Python is run as it stands there."""

import pathlib
import re

import numpy as np

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "prediction.md"


def test_outputs_features_and_detections_of_a_run(tiny_run, shapes, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/bccd").symlink_to(tiny_run)
    (tmp_path / "photo.jpg").symlink_to(next(shapes.glob("JPEGImages/*.jpg")))
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["detector"].classes == ("cross", "ring", "triangle")
    anchors = len(names["trained"].network.anchors)
    assert names["box_deltas"].shape == (10, anchors, 4)
    assert names["class_logits"].shape == (10, anchors, 4)
    sides = [each.shape[1] for each in names["feature_maps"]]
    assert sides == sorted(sides, reverse=True)
    assert len(names["evaluation"].detections) == len(names["source"]) == 12
    assert np.isfinite(names["evaluation"].result.map11)
