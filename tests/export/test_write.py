"""What is written into an exported detector, part by part."""

import jax
import numpy as np
import pytest

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
