"""Several processes as one run: who disagrees, and what all of them are told."""

import json
import pathlib
from types import SimpleNamespace

import optax
import pytest
from processes import free_port, run_processes, told, training
from tiny import tiny_config

from ssd_jax.cluster import (
    _connect,
    _found,
    cores_of_each,
    disagreement,
    from_first,
    leave,
    start,
    together,
)
from ssd_jax.config import save_config
from ssd_jax.errors import NotTogether, UserError
from ssd_jax.rendezvous import Place
from ssd_jax.sharding import make_mesh, use_cpu_cores
from ssd_jax.train.checkpoint import Checkpoints
from ssd_jax.train.state import create_state

# What a process of the test below does: it prints one JSON value.
WORKER = """
import json, pathlib, sys, time
from ssd_jax import cluster
from ssd_jax.errors import UserError
from ssd_jax.train.checkpoint import Checkpoints
coordinator, process = sys.argv[1], int(sys.argv[2])
shared, own, saved = map(pathlib.Path, sys.argv[3:])
cluster.start(batch_size=8, coordinator=coordinator, num_processes=2, process_id=process)
import jax
cluster.SHARED_SECONDS = 0.5
outcome = {"devices": [jax.local_device_count(), jax.device_count()]}

def problem_of(block, *arguments):
    try:
        return block(*arguments)
    except UserError as error:
        return str(error)

def differ():
    with cluster.together() as facts:
        facts |= {"same": 1, "other": process}

def stop_alone():
    with cluster.together():
        if process == 1:
            raise UserError("no such file")

outcome["exchanged"] = cluster.exchange({"process": process, "text": "x" * 100 * process})
outcome["from_first"] = cluster.from_first([None, 0.1, process])
outcome["differ"] = problem_of(differ)
outcome["stop_alone"] = problem_of(stop_alone)
outcome["shared"] = problem_of(cluster.check_shared, shared / "new", "")
outcome["not_shared"] = problem_of(cluster.check_shared, own, "Share it.")
outcome["left"] = [path.name for path in (*shared.rglob("*"), *own.rglob("*"))]

with Checkpoints(saved, metric="map", read_only=True) as checkpoints:
    if process == 1:
        checkpoints._manager.all_steps = list  # none yet
    outcome["latest"] = checkpoints.latest_step()
    outcome["best"] = checkpoints.select("best")
    outcome["no_such"] = problem_of(checkpoints.select, "7")
    if process == 0:
        (saved / "5").mkdir()
    outcome["seen"] = problem_of(cluster.wait_until_seen, saved / "5")
    if process == 0:
        (own / "6").mkdir()
    outcome["not_seen"] = problem_of(cluster.wait_until_seen, own / "6")
print(json.dumps(outcome))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folders = [str(tmp_path_factory.mktemp(name)) for name in ("shared", "own0", "own1")]
    saved = tmp_path_factory.mktemp("saved")
    state = create_state({"params": {}, "batch_stats": {}}, optax.sgd(0.1), make_mesh())
    with Checkpoints(saved, metric="map") as checkpoints:
        checkpoints.save(state, {"map": 0.5}, classes=("a",))
    coordinator = f"127.0.0.1:{free_port()}"
    done = run_processes(
        [["-c", WORKER, coordinator, i, folders[0], folders[1 + i], saved] for i in range(2)],
        devices=3,
    )
    assert [each.returncode for each in done] == [0, 0], told(done)
    return [json.loads(each.stdout.splitlines()[-1]) for each in done]


def test_devices_and_values_of_all_processes(outcomes):
    for outcome in outcomes:
        assert outcome["devices"] == [3, 6]
        assert [each["process"] for each in outcome["exchanged"]] == [0, 1]
        assert len(outcome["exchanged"][1]["text"]) == 100
        assert outcome["from_first"] == [None, 0.1, 0]


def test_a_difference_is_told_to_all_alike(outcomes):
    (message,) = {outcome["differ"] for outcome in outcomes}
    assert "other: 0 on process 0 (" in message
    assert "; 1 on process 1 (" in message
    assert "same" not in message.splitlines()[1]


def test_what_stops_one_process_stops_all(outcomes):
    assert outcomes[1]["stop_alone"] == "no such file"
    assert outcomes[0]["stop_alone"].startswith("process 1 (")
    assert outcomes[0]["stop_alone"].endswith("stopped: no such file")


def test_a_folder_that_is_not_shared_is_found(outcomes):
    assert [outcome["shared"] for outcome in outcomes] == [None, None]
    for outcome in outcomes:
        assert "process 0 has another folder of that name. Share it." in outcome["not_shared"]
    assert outcomes[1]["left"] == ["new"]  # and no marker stays behind


def test_which_checkpoint_is_taken_is_for_process_0_to_say(outcomes):
    """The other one sees none yet, as on a network disk that is late."""
    for outcome in outcomes:
        assert (outcome["latest"], outcome["best"]) == (0, 0)
        assert "got step '7', expected last, best or one of [0]" in outcome["no_such"]
        assert outcome["seen"] is None
        assert "process 0 sees it, but this one does not" in outcome["not_seen"]


def test_the_few_that_differ_are_named_first():
    of_all = [{"host": f"h{i}", "stopped": None, "facts": {"jax": "1"}} for i in range(15)]
    assert disagreement(of_all) is None
    of_all[7]["facts"] = {"jax": "2"}
    assert disagreement(of_all).splitlines()[1] == (
        '  jax: "2" on process 7 (h7); "1" on process 0 (h0), 1 (h1), 2 (h2), 3 (h3), 4 (h4), '
        "5 (h5), 6 (h6), 8 (h8), 9 (h9), 10 (h10), 11 (h11), 12 (h12), ..."
    )
    of_all[3]["stopped"] = "no such file"  # the cause, rather than what it has led to
    assert disagreement(of_all) == "process 3 (h3) stopped: no such file"


def test_alone_there_is_nobody_to_agree_with():
    assert from_first({"a": (1, None)}) == {"a": (1, None)}
    with together() as facts:
        facts["a"] = object()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"coordinator": "h:1", "num_processes": 2},
            "got --coordinator h:1, --num-processes 2, --",
        ),
        ({"num_processes": 2, "process_id": 0}, "got --coordinator None"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, "got 2, expected 0 to 1"),
    ],
)
def test_flags_that_make_no_cluster(words, message):
    with pytest.raises(UserError, match=message):
        start(batch_size=8, **words)


@pytest.fixture
def slurm_step(monkeypatch):
    """Sets the variables of a task of a Slurm step."""

    def step(number, *, tasks):
        told = {"JOB_ID": 7, "STEP_ID": number, "STEP_NODELIST": "a[1-2]", "NTASKS": tasks}
        for name, value in (told | {"PROCID": 0, "LOCALID": 0}).items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))

    return step


def test_steps_of_a_job_meet_at_ports_of_their_own(slurm_step, monkeypatch):
    met_at = []
    for number in (0, 1, 4294967290):  # the last is that of an interactive shell
        slurm_step(number, tasks=2)
        met_at.append(_found((None, None, None), 1)[0])
    assert len(set(met_at)) == 3
    assert {address[:4] for address in met_at} == {"a1:6"}
    assert all(61440 <= int(address[3:]) <= 65535 for address in met_at)
    for own in ("1234", "no port"):  # which is refused where it is used
        monkeypatch.setenv("JAX_COORDINATOR_PORT", own)
        assert _found((None, None, None), 1)[0] == f"a1:{own}"


@pytest.mark.parametrize("within_slurm", [True, False])
def test_a_launcher_that_jax_does_not_know_is_noticed(within_slurm, slurm_step, monkeypatch):
    if within_slurm:
        slurm_step(0, tasks=1)
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(UserError, match="one of 2 processes of an MPI launcher"):
        start(batch_size=8)


def test_who_was_counted_by_the_cluster_is_told_how_to_be_alone(slurm_step, monkeypatch):
    def wait(*_, **__):
        raise NotTogether("waited", "Wait longer.")

    monkeypatch.setattr("ssd_jax.cluster.wait_for_all", wait)
    slurm_step(4294967290, tasks=2)
    with pytest.raises(NotTogether, match=r"waited. Wait longer. .* give --num-processes 1"):
        start(batch_size=8)
    with pytest.raises(NotTogether, match=r"waited. Wait longer.$"):
        start(batch_size=8, num_processes=2)


@pytest.mark.parametrize(
    ("batch_size", "processes", "most", "devices"),
    [
        (8, 1, None, 4),
        (6, 1, None, 3),
        (8, 2, 2, 2),
        (8, 2, 4, 4),
        (6, 2, 4, 3),
        (9, 2, 4, 1),
        (8, 8, 1, 1),
    ],
)
def test_cores_are_devices_as_many_as_divide_the_batch(
    batch_size, processes, most, devices, monkeypatch
):
    chosen = settings_of_jax(monkeypatch)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4), raising=False)
    use_cpu_cores(batch_size, processes=processes, most=most)
    assert chosen == {"jax_num_cpu_devices": devices}


@pytest.mark.parametrize(
    ("processes", "each"),
    [
        ([("a", 4, 8), ("b", 8, 8)], 4),  # one is bound to half of its host
        ([("a", 8, 8), ("a", 8, 8), ("b", 8, 8)], 4),  # two share a host
        ([("a", 2, 2), ("a", 2, 2), ("a", 2, 2)], 1),
    ],
)
def test_every_process_has_as_many_cores_as_the_poorest(processes, each):
    assert cores_of_each([Place(host, 0, *cores) for host, *cores in processes]) == each


def test_a_number_of_devices_in_xla_flags_is_left_alone(monkeypatch):
    chosen = settings_of_jax(monkeypatch)
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=3")
    use_cpu_cores(8)
    assert chosen == {}


def settings_of_jax(monkeypatch):
    """What is set from now on, of a JAX of which nothing was set."""
    chosen = {}
    config = SimpleNamespace(jax_num_cpu_devices=-1, update=chosen.__setitem__)
    monkeypatch.setattr("ssd_jax.sharding.jax", SimpleNamespace(config=config))
    return chosen


@pytest.mark.parametrize(
    ("local_ids", "given", "detects"),
    [
        ((0, 1), {}, None),  # the k-th of a host has the k-th device,
        ((0, 1, 0), {}, None),  # on all hosts alike,
        ((0, 0), {}, "deactivate"),  # but where each host has one, it has them all
        ((0, 0), {"coordinator": "h:1", "process_id": 0}, "deactivate"),
    ],
)
def test_what_jax_is_told_of_a_process(local_ids, given, detects, monkeypatch):
    told, chosen, shared = [], {}, {}
    for name, does in {
        "_found": lambda *_: ("h:1", 2, 0, 0),
        "wait_for_all": lambda *_, **words: [Place("here", i, 2, 2) for i in local_ids],
        "jax.config.update": chosen.__setitem__,
        "keep_no_compiled_programs": lambda: told.append("keeps none"),
        "jax.distributed.initialize": lambda *_, **words: told.append(words),
        "use_cpu_cores": lambda *_, **words: shared.update(words),
        "_connect": lambda hosts: None,
    }.items():
        monkeypatch.setattr(f"ssd_jax.cluster.{name}", does)
    start(batch_size=8, num_processes=2, **given)
    keeps, joins = told
    assert keeps == "keeps none"
    assert joins["cluster_detection_method"] == detects
    assert chosen == {"jax_enable_preemption_service": False}
    assert shared == {"processes": 2, "most": 1}


def test_devices_that_cannot_be_opened_end_the_process(monkeypatch):
    def fail():
        raise RuntimeError(message)

    codes, message = [], "no such device"
    monkeypatch.setattr("jax.devices", fail)
    monkeypatch.setattr("jax.process_index", fail)
    monkeypatch.setattr("os._exit", codes.append)
    monkeypatch.setattr("ssd_jax.cluster.GRACE_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"cannot be used .*no such device.* --gpus-per-node"):
        _connect(["here", "there"])
    message = "DEADLINE_EXCEEDED: those of process 1"
    with pytest.raises(RuntimeError, match=message):
        _connect(["here", "there"])
    leave(2)
    assert codes == [2]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("NCCL: Duplicate GPU detected : rank 0 and rank 1", UserError),
        ("Gloo: connection closed by peer", RuntimeError),  # the other process failed
    ],
)
def test_processes_that_share_a_gpu_are_told(message, kind, monkeypatch):
    def fail(_):
        raise RuntimeError(message)

    monkeypatch.setattr("ssd_jax.cluster.any_process", fail)
    with pytest.raises(kind, match=message):
        _connect(["here"])


def test_processes_with_more_devices_than_others_are_told(monkeypatch):
    devices = [SimpleNamespace(process_index=index) for index in (0, 0, 1)]
    monkeypatch.setattr("jax.devices", lambda: devices)
    with pytest.raises(UserError, match=r"2 on process 0 \(a\), 1 on process 1 \(b\)"):
        _connect(["a", "b"])


@pytest.fixture
def config_file(shapes, tmp_path) -> pathlib.Path:
    save_config(tiny_config(shapes), tmp_path / "config.json")
    return tmp_path / "config.json"


def test_a_run_with_another_setting_on_one_process_stops_before_it_begins(config_file, tmp_path):
    commands = training(2, config_file, tmp_path / "run")
    commands[1] += ["--config.optimizer.learning_rate=0.5"]
    outcomes = run_processes(commands)
    assert [each.returncode for each in outcomes] == [2, 2], told(outcomes)
    for each in outcomes:
        assert "config.optimizer.learning_rate: 0.001 on process 0 (" in each.stderr
        assert "Traceback" not in each.stderr
    assert not (tmp_path / "run/config.json").exists()


def test_a_process_that_never_comes_is_missed_by_name(config_file, tmp_path):
    commands = training(3, config_file, tmp_path, "--start-timeout", "3")[:2]
    outcomes = run_processes(commands)
    assert [each.returncode for each in outcomes] == [2, 2], told(outcomes)
    for each in outcomes:
        assert each.stderr.startswith(
            "ssd-jax train: error: waited 3 s for 1 of 3 processes. Missing: 2; here: 0 ("
        )
        assert "Check failure stack trace" not in each.stderr
