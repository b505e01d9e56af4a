"""When experiments/launch/slurm.sbatch puts its job back; `srun` and `scontrol` are stand-ins."""

import os
import subprocess

import pytest
from processes import TESTS

SCRIPT = TESTS.parent / "experiments/launch/slurm.sbatch"
SRUN = """#!/bin/bash
[ -n "$SAVES" ] && mkdir -p "run/checkpoints/$SLURM_RESTART_COUNT"
exit "$CODE"
"""
SCONTROL = "#!/bin/bash\ntouch put_back\n"


def starts(folder, *, code, workdir="run", saves=False, most=8):
    """How often the job starts until it is not put back."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    told = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "CODE": str(code)}
    for count in range(most):
        told |= {"SLURM_RESTART_COUNT": str(count), "SAVES": "1" if saves else ""}
        command = ["bash", str(SCRIPT), "config.py", workdir]
        done = subprocess.run(command, cwd=folder, env=told, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, "")
        if not (folder / "put_back").exists():
            return count + 1
        (folder / "put_back").unlink()
    return most


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ({"code": 0}, 1),
        ({"code": 2}, 1),
        ({"code": 70}, 5),  # what fails each time
        ({"code": 137}, 5),  # a task that is killed for its memory, each time
        ({"code": 138, "saves": True}, 8),
        ({"code": 143, "saves": True}, 8),
        ({"code": 134, "saves": True}, 8),
        ({"code": 75, "workdir": "s3://bucket/run"}, 8),  # whose checkpoints it does not see
    ],
)
def test_a_job_is_put_back_while_it_gets_on(words, count, tmp_path):
    assert starts(tmp_path, **words) == count
    left = [path.name for path in tmp_path.glob(".starts_in_vain*")]
    assert left == ([".starts_in_vain_7"] if words.get("saves") else [])
