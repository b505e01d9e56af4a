"""The benchmark: its clock, its figures, what it tells."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from ssd_jax import experiment
from ssd_jax.benchmark import clock, compare, measure, parts, start, workload
from ssd_jax.benchmark.machine import Machine, choose_devices, measure_machine
from ssd_jax.benchmark.roofline import Kernel, program_kernels, stage_of
from ssd_jax.cli import main
from ssd_jax.errors import UserError
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.ops.matching import match
from ssd_jax.sharding import make_mesh
from ssd_jax.train.compiled import StepMemory
from ssd_jax.train.state import state_shapes


@pytest.fixture
def config(shapes):
    # The warm-up is longer than the run that a few pictures make.
    words = {"optimizer__schedule": "cosine", "optimizer__warmup_steps": 1000}
    words |= {"steps": None, "epochs": 1.0}
    return tiny_config(shapes, model__backbone="small", model__batch_norm_group=4, **words)


@pytest.fixture
def two_devices():
    return make_mesh(jax.devices()[:2])


# ---- the clock ----


def test_functions_take_turns(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(clock, "perf_counter", lambda: now[0])

    def taking(name, seconds):
        def call():
            now[0] += seconds
            order.append(name)

        return call

    calls = {"a": taking("a", 0.25), "b": taking("b", 0.05)}
    seconds = clock.take_turns(calls, rounds=2, least_seconds=0.1)
    assert "".join(order) == "aa" + "bb" + "a" + "bb" + "bb" + "a"
    assert seconds == {"a": [0.25, 0.25], "b": pytest.approx([0.05, 0.05])}


def test_on_cpus_no_call_begins_before_the_last_one_has_ended():
    running = []

    class Result:
        def block_until_ready(self):
            running.clear()

    def call():
        assert not running
        running.append("a program")
        return Result()

    clock.take_turns({"program": call}, rounds=2, least_seconds=1e-3)


def test_a_comparison_is_the_median_of_the_rounds():
    found = clock.compared([1.0, 2.0, 4.0], [2.0, 6.0, 4.0])
    assert (found["ratio"], found["lowest"], found["highest"]) == (2.0, 1.0, 3.0)


def test_a_command_is_read_by_its_metric_or_by_its_time():
    prints = f'{sys.executable} -S -c "print(\'first\'); print(\'{{\\"a\\": {{\\"b\\": 2.5}}}}\')"'
    assert compare._command_seconds(prints, "a.b")() == 2.5
    assert 0 < compare._command_seconds(prints, None)() < 60
    with pytest.raises(
        UserError, match=r"the last line of its output is .*, expected .* number a.c"
    ):
        compare._command_seconds(prints, "a.c")()
    with pytest.raises(UserError, match="ended with exit code 3"):
        compare._command_seconds("exit 3", None)()


# ---- figures ----


def test_figures_by_hand():
    kernels = [Kernel("", "dot_general", 600, 10), Kernel("", "fused", 0, 80)]
    program = workload.Program(lambda: None, 8, kernels, 1.0, StepMemory(3, 4))
    row = measure._figures(program, [3.0, 4.0, 9.0], Machine(300.0, 40.0), 2)
    assert (row["seconds"], row["fastest"], row["slowest"]) == (4.0, 3.0, 9.0)
    assert row["images_per_second"] == 2.0
    # 600 operations at 300 a second are 2 s, 80 bytes at 40 a second another 2 s.
    assert (row["roofline_seconds"], row["of_roofline"]) == (4.0, 1.0)
    assert (row["of_matmul_peak"], row["of_bandwidth"]) == (0.5, 90 / 4 / 40)
    # Of both devices together.
    assert (row["operations_per_second"], row["bytes_per_second"]) == (300.0, 45.0)
    assert row["memory_bytes"] == 7


def test_shares_are_of_the_step_and_add_up():
    seconds = {"train": [10.0], "bare_train": [7.0], "augment": [1.0], "match": [0.5]}
    seconds |= {"mine": [0.5], "loss": [1.5], "optimizer": [1.0]}
    shares = measure._shares(seconds, ("augment", "match", "mine", "loss", "optimizer"))
    assert shares["network"] == 0.6
    assert shares["loss"] == pytest.approx(0.05)
    assert sum(shares.values()) == pytest.approx(0.95)


def test_what_a_device_reaches(two_devices):
    machine = measure_machine(two_devices, dtype="float32", rounds=1)
    assert 1e8 < machine.matmul < 1e14
    assert 1e7 < machine.bandwidth < 1e13


def test_devices_are_chosen(capsys):
    assert choose_devices(8, 2).size == 2
    with pytest.raises(UserError, match="--devices: got 9, expected at most 8"):
        choose_devices(8, 9)


def test_a_workload_is_made_up_or_ones_own(config, two_devices):
    made_up = workload.make_workload(config, two_devices, objects=7)
    assert made_up.batch.valid.shape == (8, 7)
    assert made_up.batch.valid.all()
    assert made_up.network.model.heads.num_classes == 20
    own = workload.make_workload(config, two_devices, own_data=True)
    assert own.network.model.heads.num_classes == 3
    assert len(own.source) == 20
    config.batch_size = 7
    with pytest.raises(UserError, match="got 7, expected a multiple of the 2 devices"):
        workload.make_workload(config, two_devices)


@pytest.mark.parametrize("build", [parts.match_program, parts.mine_program])
def test_parts_run_on_the_devices(config, two_devices, build):
    program = build(workload.make_workload(config, two_devices))
    jax.block_until_ready(program.call())
    assert program.images == 8
    assert program.kernels
    assert program.memory.total > 0


def intermediates(jaxpr):
    for eqn in jaxpr.eqns:
        for value in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from intermediates(inner)
        yield from (v.aval.size for v in eqn.outvars)


@pytest.mark.parametrize(("anchors", "objects"), [(400, 3), (2500, 3), (2500, 40)])
def test_matching_costs_anchors_times_objects(anchors, objects):
    boxes = jnp.zeros((objects, 4))
    jaxpr = jax.make_jaxpr(lambda *a: match(np.zeros((anchors, 4), np.float32), *a))(
        boxes, jnp.zeros(objects, int), jnp.ones(objects, bool)
    )
    # A pair has four numbers, and so has an anchor.
    assert max(intermediates(jaxpr.jaxpr)) <= 4 * anchors * max(objects, 4)


def test_a_start_is_that_of_the_network_that_is_measured(config, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "{}", "")

    monkeypatch.setattr("subprocess.run", run)
    start.measure_starts(config, devices=1, own_data=True)
    assert all(command[-3:] == ["--devices", "1", "--own-data"] for command in commands)
    assert len(commands) == 2


# ---- the command ----


@pytest.fixture
def made_up_result(config, monkeypatch):
    """A whole result of programs that compile in no time."""

    def trivial(work):
        function = jax.jit(lambda x: (x @ x).sum())
        x = jnp.ones((8, 8))
        return workload.make_program(function.trace(x), lambda f: lambda: f(x), 8)

    for name in ("train", "bare", "evaluate", "forward", "predict"):
        monkeypatch.setattr(measure, f"{name}_program", trivial)
    names = ("augment", "match", "mine", "loss", "optimizer")
    monkeypatch.setattr(measure, "part_programs", lambda work: {n: trivial(work) for n in names})
    monkeypatch.setitem(compare.MEASURES, "train", trivial)
    monkeypatch.setattr(
        start, "measure_starts", lambda *_, **__: {
            "warm": {"import": 1.0, "first_answer": 2.0, "compile_predict": 0.5,
                     "first_step": 3.0, "compile_train": 0.25}
        }
    )  # fmt: skip


def write_config(folder, config):
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return str(path)


def test_the_command_tells_and_writes(config, made_up_result, tmp_path, capsys):
    command = ["benchmark", "--config", write_config(tmp_path, config), "--devices", "1"]
    out = tmp_path / "speed.json"
    extra = ["--rounds", "2", "--json", str(out), "--profile", str(tmp_path / "trace")]
    assert main([*command, *extra]) == 0
    told = capsys.readouterr().out
    for text in (
        "training step",
        "one image",
        "a training loop waits for it",
        "first prediction after 2.0 s",
    ):
        assert text in told
    result = json.loads(out.read_text())
    assert result["programs"]["train"]["images_per_second"] > 0
    assert result["machine"]["devices"] == 1
    assert 0 <= result["input"]["data_wait"] <= 1
    assert list((tmp_path / "trace").rglob("perfetto_trace.json.gz"))


def test_a_config_is_compared_with_itself_and_with_a_command(
    config, made_up_result, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "to be taken back")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    file, out = write_config(tmp_path, config), tmp_path / "ratio.json"
    command = ["benchmark", "--config", file, "--devices", "1", "--rounds", "2"]
    assert main([*command, "--against", file]) == 0
    told = capsys.readouterr().out
    assert told.count(file) == 2
    assert "times as long" in told
    # - gives the line that --metric reads.
    assert main([*command, "--against", file, "--json", "-"]) == 0
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert compare._read_metric(last_line, "ratio", "") > 0
    peer = tmp_path / "peer.py"
    peer.write_text("import os; os.environ['XLA_PYTHON_CLIENT_PREALLOCATE']; print('{}')")
    words = ["--against", f"{sys.executable} -S {peer}", "--json", str(out)]
    assert main([*command, *words]) == 0
    assert len(json.loads(out.read_text())["ratios"]) == 2


def test_both_sides_have_the_same_kind_of_pictures(config, made_up_result, monkeypatch, tmp_path):
    seen = []
    trivial = compare.MEASURES["train"]
    monkeypatch.setitem(
        compare.MEASURES, "train", lambda work: seen.append(work.network) or trivial(work)
    )
    file = write_config(tmp_path, config)
    command = ["benchmark", "--config", file, "--devices", "1", "--rounds", "1"]
    for words, classes in ((["--own-data"], 3), (["--classes", "5"], 5)):
        seen.clear()
        assert main([*command, "--against", file, *words]) == 0
        assert [network.model.heads.num_classes for network in seen] == [classes] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--find-batch --json x.json", "--json cannot be used with --find-batch"),
        ("--find-batch --rounds 5", "--rounds cannot be used with --find-batch"),
        ("--against true --profile trace", "--profile cannot be used with --against"),
        ("--against b.py --metric a", "--metric cannot be used with --against FILE"),
        ("--memory-gib 1", "--memory-gib cannot be used without --find-batch or --against"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, capsys):
    assert main(["benchmark", "--config", "a.py", *arguments.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_mistake_that_a_start_finds_is_one_message(config, tmp_path, capsys):
    command = ["benchmark", "--config", write_config(tmp_path, config), "--devices", "3"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "config.batch_size: got 8, expected a multiple of the 3 devices." in told
    assert "Traceback" not in told


def test_a_trace_that_cannot_be_written_is_told_before_the_work(config, tmp_path, capsys):
    file = write_config(tmp_path, config)
    assert main(["benchmark", "--config", file, "--profile", file]) == 2
    assert f"{file}: expected a folder to write to" in capsys.readouterr().err


@pytest.mark.long
def test_the_whole_of_a_real_config(config, tmp_path, capsys):
    config.data.threads = 2
    out = tmp_path / "speed.json"
    command = ["benchmark", "--config", write_config(tmp_path, config), "--json", str(out)]
    assert main([*command, "--devices", "2", "--rounds", "1"]) == 0
    result = json.loads(out.read_text())
    assert set(result["shares"]) == {"augment", "match", "mine", "loss", "optimizer", "network"}
    assert {row["layer"] for row in result["layers"]} & {"backbone/conv1_1", "augment"}
    assert all(row["operations_per_second"] > 0 for row in result["programs"].values())
    warm, cold = result["start"]["warm"], result["start"]["cold"]
    assert warm["compile_train"] < cold["compile_train"]


def test_stages_are_told_in_traces(config):
    mesh = make_mesh(jax.devices()[:1])
    work = workload.make_workload(config, mesh)
    schedule = experiment.stand_in_schedule(config)
    optimizer = experiment.build_optimizer(config, schedule)
    step = experiment.build_step(config, work.network, schedule, optimizer, mesh)
    state = state_shapes(variable_shapes(work.network.model, 64), optimizer, mesh)
    kernels = program_kernels(jax.make_jaxpr(step)(state, work.batch))
    stages = {stage_of(kernel) for kernel in kernels}
    assert {"augment", "network", "match", "mine", "loss", "optimizer"} <= stages
