"""A Slurm of one node on this machine, for a test; needs root and Debian's slurm-wlm.

Everything that it writes, its MUNGE key and socket too, lies in one folder of its own.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

from processes import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
CPUS = 8
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is put back into the queue waits for its credential to run out.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:{cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
# Plain files in place of GPUs, so that a job that asks for some can run.
GPUS = "AutoDetect=off\nName=gpu File={folder}/gpu[1-{cpus}]\n"


def why_not() -> str:
    """What keeps this machine from running a Slurm; "" for nothing."""
    missing = [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "Slurm's daemons want root"


@contextlib.contextmanager
def slurm_node(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Runs the daemons; gives the variables that `srun` and `sbatch` need to find them."""
    host = socket.gethostname()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    for number in range(1, CPUS + 1):
        (folder / f"gpu{number}").touch()
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o400)
    (folder / "gres.conf").write_text(GPUS.format(folder=folder, cpus=CPUS))
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(
            folder=folder,
            host=host,
            cpus=CPUS,
            controller_port=free_port(),
            node_port=free_port(),
        )
    )
    munge = [
        "--force",
        f"--key-file={folder}/key",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munged.seed",
    ]
    variables = {"SLURM_CONF": str(config)}
    environment = os.environ | variables
    processes = []
    try:
        for command in (
            ["munged", "--foreground", *munge],
            ["slurmctld", "-D", "-c", "-f", str(config)],
            ["slurmd", "-D", "-c", "-f", str(config)],
        ):
            with (folder / f"{command[0]}.out").open("w") as output:
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=output)
                )
            time.sleep(0.5)
        deadline = time.monotonic() + 60
        while "idle" not in _answer(environment, "sinfo", "--noheader", "--format=%T"):
            if time.monotonic() > deadline:
                logs = "\n".join((folder / f"{name}.out").read_text() for name in DAEMONS)
                raise RuntimeError(f"Slurm did not come up: {logs}")
            time.sleep(0.5)
        yield variables
        _answer(environment, "scancel", "--partition=all")  # of a test that has failed
        while _answer(environment, "squeue", "--noheader") and time.monotonic() < deadline + 600:
            time.sleep(0.5)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _answer(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=False
    ).stdout
