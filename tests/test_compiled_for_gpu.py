"""The reader of compiled programs; compiling for a GPU needs packages that the tests have not."""

import pytest
from scripts import script


@pytest.fixture
def compiled():
    with script("experiments/speed/compiled_for_gpu.py") as module:
        yield module


PROGRAM = """HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %old = f32[8]{0} get-tuple-element(%state), index=1
  %new = f32[8]{0} fusion(%old), kind=kLoop
  %next = s32[] fusion(%state), kind=kLoop
  ROOT %both = (s32[], f32[8]{0}) tuple(%next, %new)
}

%again (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[], f32[8]{0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  ROOT %more = pred[] fusion(%count), kind=kLoop
}

ENTRY %main (a: bf16[4,8]) -> (f32[8]) {
  %a = bf16[4,8]{1,0} parameter(0)
  %sum.1 = (f32[8]{0}, s32[]) fusion(%a), kind=kInput, metadata={op_name="jit(step)/loss/add"}
  %first = f32[8]{0} get-tuple-element(%sum.1), index=0
  %loop = (s32[], f32[8]{0}) while(%sum.1), condition=%again, body=%body, \
metadata={op_name="jit(step)/loss/mine"}, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %out = f32[8]{0} fusion(%first, %sum.1), kind=kLoop
}
"""


def test_the_bytes_of_each_kernel(compiled):
    assert compiled.kernels_of(compiled.computations(PROGRAM)[""]) == [
        compiled.Kernel("sum.1", "fusion", "jit(step)/loss/add", written=36, read=64),
        compiled.Kernel("loop", "while", "jit(step)/loss/mine", written=36, read=36),
        compiled.Kernel("out", "fusion", "", written=32, read=68),
    ]


def test_the_launches_of_loops(compiled):
    loops = compiled.loops_of(compiled.computations(PROGRAM))
    assert loops == [compiled.Loop("jit(step)/loss/mine", rounds=10, launches_a_round=2)]
    assert loops[0].launches == 20


def test_a_loop_whose_rounds_depend_on_data_launches_its_condition_once_more(compiled):
    program = PROGRAM.replace("known_trip_count", "nothing_known")
    (loop,) = compiled.loops_of(compiled.computations(program))
    assert loop == compiled.Loop("jit(step)/loss/mine", None, launches_a_round=3, launches_to_end=1)
    assert loop.launches == 4


def test_the_bytes_of_shapes(compiled):
    assert compiled.bytes_of("(pred[3]{0}, u8[2,2]{1,0}, bf16[4]{0})") == 3 + 4 + 8
    assert compiled.bytes_of("s64[]") == 8
