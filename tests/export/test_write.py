"""What is written into an exported detector, part by part."""

import shutil

import jax
import numpy as np
import pytest

from ssd_jax.cli import main
from ssd_jax.config import read_config, save_config
from ssd_jax.errors import UserError
from ssd_jax.export import write
from ssd_jax.export.stablehlo import to_stablehlo
from ssd_jax.ops.boxes import cxcywh_to_xyxy
from ssd_jax.types import Detections


def test_a_program_tells_no_path_of_the_machine():
    def predict(weights, canvas, extent):
        boxes = cxcywh_to_xyxy(weights["boxes"])
        return Detections(boxes, boxes, canvas, extent)

    before = jax.config.jax_traceback_in_locations_limit
    program = to_stablehlo(predict, {"boxes": np.ones((3, 4), np.float32)}, 8)
    assert b".py" not in program
    assert jax.config.jax_traceback_in_locations_limit == before


@pytest.mark.parametrize("text", ['{"step": 6, "met', "[]"])
def test_a_report_that_cannot_be_read_is_told(text, tmp_path):
    assert write._report(tmp_path, 6) == {}
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=r"report\.json: this is not a complete report of a run"):
        write._report(tmp_path, 6)


@pytest.mark.long
def test_a_detector_with_sigmoids_and_its_own_group_passes_the_check(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = read_config(run / "config.json")
    config.model.class_activation, config.loss.class_loss = "sigmoid", "varifocal"
    config.batch_size = config.model.batch_norm_group = 12
    save_config(config, run / "config.json")
    assert main(["export", "--workdir", str(run), "--out", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model/meta.json").is_file()
