"""Real launchers: a run under Open MPI and under a Slurm of one node, with the files to copy."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from processes import TESTS, environment, free_port
from slurm_node import slurm_node, why_not
from topologies import config_of

from ssd_jax.config import save_config

LAUNCH = TESTS.parent / "experiments/launch"
MPIRUN = ("--allow-run-as-root", "--oversubscribe")  # root, and more processes than cores
needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="mpirun not installed (Debian: openmpi-bin)"
)
needs_slurm = pytest.mark.skipif(bool(why_not()), reason=why_not())
pytestmark = pytest.mark.long


@pytest.fixture
def files(shapes, tmp_path) -> tuple[str, str]:
    """A config, and the folder of a run that is not there yet."""
    save_config(config_of(shapes, steps=3), tmp_path / "config.json")
    return str(tmp_path / "config.json"), str(tmp_path / "run")


def launched(command, *, devices=1, **variables) -> str:
    """Runs a launcher to its end, with `ssd-jax` of this Python; its output."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env=environment(devices, PATH=path, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def assert_one_run(output, workdir, processes):
    assert output.count(f"anchors; {processes} x cpu") == 1
    assert output.count("mAP@.5 (VOC07 11-point) = ") == 1
    assert json.loads((pathlib.Path(workdir) / "report.json").read_text())["step"] == 3


@needs_mpirun
@pytest.mark.parametrize("processes", [2, 4])
def test_mpirun_needs_no_flags(processes, files):
    config, workdir = files
    train = ("ssd-jax", "train", "--config", config, "--workdir", workdir)
    output = launched(["mpirun", *MPIRUN, "-n", str(processes), *train])
    assert_one_run(output, workdir, processes)


@needs_mpirun
def test_the_script_for_any_open_mpi(files):
    options = " ".join(["-n", "2", *MPIRUN])
    output = launched(
        [LAUNCH / "openmpi.sh", options, *files, "--config.log_every_steps=2"],
        COORDINATOR=f"127.0.0.1:{free_port()}",
    )
    assert_one_run(output, files[1], 2)


@needs_mpirun
@pytest.mark.parametrize(
    "stop",
    [
        lambda script: script.terminate(),
        lambda script: script.send_signal(signal.SIGUSR1),
        lambda script: os.killpg(script.pid, signal.SIGINT),  # Ctrl-C
    ],
)
def test_a_run_under_the_script_is_saved_before_open_mpi_kills_it(stop, shapes, tmp_path):
    save_config(config_of(shapes, steps=5000), tmp_path / "config.json")
    words = [LAUNCH / "openmpi.sh", " ".join(["-n", "2", *MPIRUN]), tmp_path / "config.json"]
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    told = environment(1, PATH=path, COORDINATOR=f"127.0.0.1:{free_port()}")
    with (tmp_path / "output").open("w") as output:
        running = subprocess.Popen(
            [*words, tmp_path / "run"],
            env=told,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for(tmp_path / "output", "step 1/5000")
    stop(running)
    assert running.wait(timeout=120) == 75
    saved = [path.name for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit()]
    assert saved


def test_processes_of_an_unknown_launcher_do_not_train_apart(files):
    config, workdir = files
    with pytest.raises(AssertionError, match="one of 2 processes of an MPI launcher"):
        launched(
            ["ssd-jax", "train", "--config", config, "--workdir", workdir],
            OMPI_COMM_WORLD_SIZE="2",
        )
    assert not pathlib.Path(workdir).exists()


@needs_slurm
def test_a_slurm_job_is_put_back_after_its_signal_and_finishes(files, tmp_path):
    output = tmp_path / "output"
    (tmp_path / "slurm").mkdir()
    with slurm_node(tmp_path / "slurm") as variables:
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        told = environment(1, PATH=path, **variables)
        submit = ["sbatch", "--parsable", "--ntasks-per-node=2", "--cpus-per-task=1"]
        job = subprocess.run(
            [*submit, f"--output={output}", LAUNCH / "slurm.sbatch", *files],
            cwd=tmp_path,
            env=told,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.strip()
        wait_for(output, "anchors; 2 x cpu")
        time.sleep(5)  # in the compilation
        subprocess.run(["scancel", "--signal=USR1", job], env=told, timeout=60, check=True)
        wait_for(output, "mAP@.5 (VOC07 11-point) = ")
    text = output.read_text()
    assert text.count("anchors; 2 x cpu") == 2
    assert "resumed at step" in text
    assert json.loads((pathlib.Path(files[1]) / "report.json").read_text())["step"] == 3


@needs_slurm
def test_two_steps_of_a_job_are_two_runs(files, tmp_path):
    config, workdir = files
    step = f"srun -n 2 --exact ssd-jax train --config {config} --workdir {workdir}"
    output, script = tmp_path / "output", tmp_path / "job"
    script.write_text(f"#!/bin/bash\n{step}-a & {step}-b & wait\n")
    (tmp_path / "slurm").mkdir()
    with slurm_node(tmp_path / "slurm") as variables:
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        submit = ["sbatch", "--wait", "-n", "4", f"--output={output}", script]
        told = environment(1, PATH=path, **variables)
        subprocess.run(submit, cwd=tmp_path, env=told, timeout=600, check=False)
    assert output.read_text().count("anchors; 2 x cpu") == 2, output.read_text()
    for name in "ab":
        assert json.loads(pathlib.Path(f"{workdir}-{name}/report.json").read_text())["step"] == 3


def wait_for(file: pathlib.Path, words: str) -> None:
    """Until a file holds the words."""
    deadline = time.monotonic() + 600
    while not (file.exists() and words in file.read_text()):
        assert time.monotonic() < deadline, file.exists() and file.read_text()
        time.sleep(0.5)
