"""Several processes as one run: how they find each other, and what they must agree on.

JAX detects the cluster (Slurm, Open MPI, Kubernetes, TPU pods); there is no scheduler here.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from ml_collections import ConfigDict

import ssd_jax
from ssd_jax.caches import keep_no_compiled_programs
from ssd_jax.config import flat_items
from ssd_jax.errors import NotTogether, Stopped, UserError, some_of
from ssd_jax.rendezvous import Place, wait_for_all
from ssd_jax.sharding import any_process, use_cpu_cores

# Of Open MPI and MPICH; JAX 0.10 knows Open MPI up to version 4 (jax-ml/jax#14576).
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# The steps of a job are so many ports apart, so that they do not meet those of the next job.
_PORTS_APART = 97
# Practically for ever: long before, another process ends the wait or JAX notices that one died.
A_DAY_MS = 24 * 60 * 60 * 1000
# Most characters of a value that a message shows.
SHOWN_LETTERS = 200
# Time for the others to report the same failure, before the end of process 0 ends them too.
GRACE_SECONDS = 2.0
# A network folder may take this long to show a new file to other hosts.
SHARED_SECONDS = 60.0

# Address of the coordinator, number of processes, id of this one.
Given = tuple[str | None, int | None, int | None]

_meetings = itertools.count()
# Why this process asks all to stop at the next meeting.
_asked: str | None = None


def start(
    *,
    batch_size: int,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins the run of several processes, if there is one; call it before any use of JAX.

    Arguments that are not given come from the cluster that JAX detects; without one the process is
    alone. The devices of a process are JAX_LOCAL_DEVICE_IDS, or all that it sees; but if a cluster
    has started several processes on one host, the k-th of each host has the k-th device. On CPUs
    the cores of a host are divided among its processes, see `sharding.use_cpu_cores`. `coordinator`
    is HOST:PORT of process 0, `timeout` is in seconds.

    Raises:
      UserError: not all processes came in time (raised on each that did), or they were started
        wrongly.
    """
    if jax.distributed.is_initialized():  # by the user's script
        return
    given = (coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), num_processes, process_id)
    asks_cluster = None in given and num_processes != 1
    found = _found(given, timeout) if asks_cluster else (*given, 0)
    counted_by_cluster = num_processes is None
    coordinator, num_processes, process_id, local_id = found
    if num_processes is None or num_processes == 1:
        use_cpu_cores(batch_size)
        return
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id: got {process_id}, expected 0 to {num_processes - 1} in a run of "
            f"{num_processes}."
        )
    try:
        places = wait_for_all(
            coordinator,
            count=num_processes,
            process_id=process_id,
            timeout=timeout,
            local_id=local_id,
        )
    except NotTogether as error:
        if not counted_by_cluster:
            raise
        raise NotTogether(
            error.problem,
            f"{error.fix} The cluster says that there are {num_processes}; to run alone, as in an "
            "interactive shell of Slurm, give --num-processes 1, or start all with srun.",
        ) from error
    keep_no_compiled_programs()
    # Its handler, set from C++, would swallow SIGTERM when `train.stopping` has set no handler.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout,
        # With detection, the k-th process of a host gets only the k-th device, even if it is alone.
        cluster_detection_method=None if any(each.local_id for each in places) else "deactivate",
    )
    use_cpu_cores(batch_size, processes=num_processes, most=cores_of_each(places))
    _connect([place.host for place in places])


def cores_of_each(places: Sequence[Place]) -> int:
    """The CPU cores that every process can have, if those on one host share all its cores."""
    on_host = collections.Counter(place.host for place in places)
    return max(1, min(min(each.cores, each.host_cores // on_host[each.host]) for each in places))


def _found(given: Given, timeout: int) -> tuple[str | None, int | None, int | None, int]:
    """The three values, from `given` or else from the cluster, and the process' index on its host.

    The first three are None if there is no cluster.
    """
    # JAX itself looks for clusters only in `initialize`, and raises ValueError if there is none.
    from jax._src.clusters import ClusterEnv

    try:
        *found, devices = ClusterEnv.auto_detect_unset_distributed_params(
            *given, None, None, timeout
        )
    except Exception as error:
        raise UserError(
            f"there is a cluster, but it does not say how to join it ({error}). Give --coordinator,"
            " --num-processes and --process-id, or --num-processes 1 for a single process."
        ) from error
    started = max(int(os.environ.get(name, "1")) for name in MPI_SIZES)
    if found[1] in (None, 1) and started > 1:  # also within a step of Slurm with one task
        raise UserError(
            f"this is one of {started} processes of an MPI launcher that JAX does not know. Give "
            "--coordinator, --num-processes and --process-id as experiments/launch/openmpi.sh does,"
            " or --num-processes 1 for a single process."
        )
    if None in found and found != [None] * 3:
        raise UserError(
            f"got --coordinator {found[0]}, --num-processes {found[1]}, --process-id {found[2]}; "
            "expected all three, or none of them in a cluster that provides them."
        )
    if given[0] is None and found[0] is not None:
        found[0] = _of_step(found[0])
    return (*found, devices[0] if devices else 0)


def _of_step(address: str) -> str:
    """The address with a port of the Slurm step, for steps of one job that run side by side.

    JAX computes the port from the job's number alone.
    """
    host, _, port = address.rpartition(":")
    job, step = (os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if not (job.isdecimal() and step.isdecimal()) or port != str(_port(int(job))):
        return address
    return f"{host}:{_port(int(job) + _PORTS_APART * int(step))}"


def _port(number: int) -> int:
    return 61440 + number % 4096  # as JAX does


def _connect(hosts: Sequence[str]) -> None:
    """Opens the connections of collectives while all processes are still in step.

    JAX waits two minutes for the devices of the others, and Gloo half a minute for their first
    collective, but later ones without limit. After this call one process may take long for data.
    """
    try:
        devices = collections.Counter(device.process_index for device in jax.devices())
    except Exception as error:
        if "DEADLINE_EXCEEDED" in str(error):  # the devices of another process
            raise
        raise _unusable(error) from error
    if len(set(devices.values())) > 1:
        counts = ", ".join(f"{devices[i]} on process {i} ({host})" for i, host in enumerate(hosts))
        raise UserError(
            f"the processes have different numbers of devices: {counts}. Expected the same number "
            "on each, because all get equal parts of a batch. JAX_NUM_CPU_DEVICES sets it on CPUs."
        )
    try:
        any_process(False).block_until_ready()
    except Exception as error:
        if "Duplicate GPU" in str(error):  # NCCL's, of processes that share a GPU
            raise _unusable(error) from error
        raise
    exchange(None)


def _unusable(error: Exception) -> UserError:
    return UserError(
        f"{socket.gethostname()}: the devices of this process cannot be used ({error!r}). If "
        "several processes run on a host, each must see all its GPUs (Slurm: --gpus-per-node, "
        "not --gpus-per-task), or get its own by JAX_LOCAL_DEVICE_IDS."
    )


def exchange(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order, on each of them.

    A process may call it as late as it likes.

    Raises:
      Stopped: a process has called `ask_to_stop` before; raised on all of them.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather
    from orbax.checkpoint.multihost import get_barrier_sync_fn

    # The only public barrier whose time-out can be chosen.
    get_barrier_sync_fn()(key=f"ssd_jax/{next(_meetings)}", timeout_ms=A_DAY_MS)
    text = np.frombuffer(json.dumps([_asked, value]).encode(), np.uint8)
    lengths = process_allgather(np.int32(len(text)))
    # Rounded up to a power of two, so that few lengths compile a new program.
    padded = np.zeros(1 << int(lengths.max()).bit_length(), np.uint8)
    padded[: len(text)] = text
    rows = process_allgather(padded)
    told = [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]
    for process, (why, _) in enumerate(told):
        if why is not None:
            raise Stopped(_asked or f"process {process} was {why}")
    return [each for _, each in told]


def ask_to_stop(why: str | None) -> None:
    """Makes the next meeting of the processes stop all of them; None takes the request back.

    For signal handlers: if they raised in a meeting, the other processes would wait for ever.
    """
    global _asked
    _asked = why


def from_first(value: Any) -> Any:
    """The JSON value of process 0, for decisions that all processes must take alike."""
    return exchange(value)[0] if jax.process_count() > 1 else value


@contextlib.contextmanager
def together() -> Iterator[dict[str, Any]]:
    """A block that all processes complete, or none: an error in one of them stops all.

    The facts that the block writes into the yielded dict, JSON values, must be the same on all.

    Raises:
      Stopped: a process was asked to stop; the same on every process.
      UserError: the same on every process; says which of them differ or have stopped, and why.
    """
    facts: dict[str, Any] = {}
    if jax.process_count() == 1:
        yield facts
        return
    own = {"host": socket.gethostname(), "stopped": None, "facts": facts}
    try:
        yield facts
    except Exception as error:
        exchange(own | {"stopped": str(error) or repr(error)})
        raise
    if problem := disagreement(exchange(own)):
        raise UserError(problem)


def disagreement(processes: Sequence[Mapping[str, Any]]) -> str | None:
    """A message about processes that differ or have stopped; None if there are none.

    `processes` has, in their order, the "host" and "facts" of each and the reason if it "stopped".
    """
    names = [f"{index} ({each['host']})" for index, each in enumerate(processes)]
    stopped = [
        f"process {name} stopped: {each['stopped']}"
        for name, each in zip(names, processes, strict=True)
        if each["stopped"] is not None
    ]
    if stopped:
        return "\n".join(stopped[:3])
    different = []
    for fact in dict.fromkeys(name for each in processes for name in each["facts"]):
        having = collections.defaultdict(list)
        for name, each in zip(names, processes, strict=True):
            having[json.dumps(each["facts"].get(fact))].append(name)
        if len(having) > 1:
            rarest_first = sorted(having.items(), key=lambda item: len(item[1]))
            different.append(
                f"  {fact}: "
                + "; ".join(
                    f"{_short(value)} on process {some_of(who)}" for value, who in rarest_first
                )
            )
    if not different:
        return None
    return "\n".join(
        [
            "the processes of this run differ:",
            *different,
            "Start all of them with the same command, packages and data.",
        ]
    )


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def leave(code: int) -> None:
    """Ends this process of a failed run at once.

    A normal exit would wait for the others, which may be waiting for this one.
    """
    # Not `jax.process_index`, which would open the devices, and they may have failed.
    if global_state.process_id == 0:
        time.sleep(GRACE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tell(text: object) -> None:
    """Prints on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def run_facts(config: ConfigDict) -> dict[str, Any]:
    """The versions, the code and the settings of a process."""
    package = pathlib.Path(ssd_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return {
        "ssd_jax": ssd_jax.__version__,
        "code of ssd_jax": digest.hexdigest()[:16],
        "jax": jax.__version__,
        **{f"config.{name}": value for name, value in flat_items(config)},
    }


def fingerprint(arrays: Any) -> str:
    """A hash of the arrays of a tree, in host memory."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def check_shared(folder: pathlib.Path, advice: str) -> None:
    """Creates the folder; raises `UserError` on all processes unless all of them see it.

    `advice` tells the user how to give them a folder that they share.
    """
    if jax.process_count() == 1:
        return
    marker = folder / f".shared-{from_first(uuid.uuid4().hex)}"
    with together():
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            marker.touch()
    try:
        wait_until_seen(marker, f"{folder}: process 0 has another folder of that name. {advice}")
    finally:
        if jax.process_index() == 0:
            marker.unlink(missing_ok=True)


def wait_until_seen(path: pathlib.Path, otherwise: str = "") -> None:
    """Waits until every process sees a file of process 0; a network disk may take a while.

    Raises:
      UserError: on all processes, with the message `otherwise`: one of them does not see it.
    """
    if jax.process_count() == 1:
        return
    with together():
        deadline = time.monotonic() + SHARED_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise UserError(otherwise or f"{path}: process 0 sees it, but this one does not.")
            time.sleep(0.1)
