"""Trains, measures and writes the published table of SSD on PASCAL VOC.

    python experiments/voc_table/run.py --out runs/voc_table --dry-run
    python experiments/voc_table/run.py --out runs/voc_table [--rows NAME ...] [--seeds 5]
    python experiments/voc_table/run.py --out DIR --scale 0.01

If run again, it skips finished runs and resumes unfinished ones. README.md has the rest.
"""

import argparse
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import miniature
import tables
from ml_collections import ConfigDict

from ssd_jax import config as configs
from ssd_jax.caches import keep_compiled_programs
from ssd_jax.cli import EXIT_STOPPED
from ssd_jax.commands.common import count, positive
from ssd_jax.config_check import check, images_together
from ssd_jax.errors import Stopped, UserError
from ssd_jax.runs.log import REPORT_FILE

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SEEDS, MINIATURE_SEEDS = 5, 1
_ARRAY = "SLURM_ARRAY_TASK_"
_OWN_NUMBERS = (
    "Give --task and --tasks, e.g. for a part of --array=0-39: --task $SLURM_ARRAY_TASK_ID "
    "--tasks 40."
)


class Row(NamedTuple):
    """A row of the table: its config, and the published number with its source."""

    config: str
    published: float
    source: str


_AMAZON = "AWS Machine Learning Blog, Object Detection algorithm now available in Amazon SageMaker"
_PUBLISHED = {"vgg16_64": 0.780, "vgg16_16": 0.780, "resnet50_64": 0.791, "resnet50_16": 0.796}
ROWS = {
    f"{recipe}_{row}": Row(f"voc0712_{recipe}_512.py:{row}", mean, _AMAZON)
    for recipe in ("sagemaker", "paper")
    for row, mean in _PUBLISHED.items()
}
DEFAULT_ROWS = tuple(ROWS)
ROWS |= {
    "best_vgg16": Row("best_vgg16_512.py", 0.807, "to beat: plain SSD512, README of lufficc/SSD"),
    "best_resnet50": Row("best_resnet50_512.py", 0.815, "to beat: FPNSSD512, README of TorchCV"),
}


class Job(NamedTuple):
    """One run."""

    row: str
    seed: int

    def folder(self, out: pathlib.Path) -> pathlib.Path:
        """The folder of the run."""
        return out / "runs" / self.row / f"seed_{self.seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit codes are those of `ssd-jax train`."""
    keep_compiled_programs()
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        return run(options, configs.split_assignments(rest))
    except (UserError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"{parser.prog}: {stop}", file=sys.stderr)
        return EXIT_STOPPED


def build_parser() -> argparse.ArgumentParser:
    """The options; settings of the config may be given in addition."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Settings of all rows can be changed, e.g. --config.data.cache=device.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=tuple(ROWS),
        default=DEFAULT_ROWS,
        metavar="NAME",
        help=f"some of {', '.join(ROWS)} (default: all except best_*)",
    )
    parser.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help=f"seeds 0 to N - 1 (default: {SEEDS}, in miniature {MINIATURE_SEEDS})",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="below 1, everything in miniature: this fraction of the images and of the epochs",
    )
    array = "(default: from a Slurm array)"
    parser.add_argument(
        "--tasks", type=positive, metavar="N", help=f"number of tasks that share the runs {array}"
    )
    parser.add_argument(
        "--task", type=count, metavar="I", help=f"index of this task, from 0 {array}"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run", action="store_true", help="check data, weights, memory and time; train nothing"
    )
    what.add_argument(
        "--collect", action="store_true", help="write the table of finished runs; train nothing"
    )
    return parser


def run(options: argparse.Namespace, assignments: Sequence[tuple[str, str]]) -> int:
    """Trains the missing runs of this task's share, then writes the table of all finished runs."""
    if not 0 < options.scale <= 1:
        raise UserError(f"--scale: got {options.scale}, expected more than 0, at most 1.")
    task, tasks = which_task(options, os.environ)
    seeds = options.seeds or (SEEDS if options.scale == 1 else MINIATURE_SEEDS)
    rows = {
        name: config_of(name, assignments, scale=options.scale, out=options.out)
        for name in dict.fromkeys(options.rows)
    }
    failed = []
    if not options.collect:
        prepare_jax(rows, options.scale)
    if options.dry_run:
        from rehearsal import rehearse

        return 2 if rehearse(rows, seeds=seeds, miniature=options.scale < 1) else 0
    if not options.collect:
        share = jobs(rows, seeds, task=task, tasks=tasks)
        failed = train_all(rows, share, options.out)
    print(f"\n{tables.write(records(options.out), options.out)}")
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    return 2 if failed else 0


def config_of(
    name: str, assignments: Sequence[tuple[str, str]], *, scale: float, out: pathlib.Path
) -> ConfigDict:
    """The config of a row, without its seed; in miniature its images are made here."""
    config = configs.load_config(str(CONFIGS / ROWS[name].config))
    if scale < 1:
        miniature.shrink(config, scale)
    configs.override(config, assignments)
    if scale < 1:
        devkit = miniature.make_devkit(config, out / "VOCdevkit", scale)
        config.data.train.root = config.data.val.root = str(devkit)
    check(config)
    return config


def prepare_jax(rows: dict[str, ConfigDict], scale: float) -> None:
    """Sets JAX options that must be set before the first program runs."""
    import jax

    from ssd_jax.sharding import use_cpu_cores

    use_cpu_cores(math.gcd(*(c.batch_size // images_together(c) for c in rows.values())))
    if scale < 1:
        # Nearly all of the time is compilation, which takes a third as long without optimizations.
        jax.config.update("jax_disable_most_optimizations", True)


def which_task(options: argparse.Namespace, environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, count) from --task and --tasks, else from Slurm, which may count from any number."""
    given = options.task, options.tasks
    if given == (None, None):
        return array_task(environment)
    if None in given:
        raise UserError("got only one of --task and --tasks, expected both or none. Give both.")
    if options.task >= options.tasks:
        raise UserError(f"--task: got {options.task}, expected less than --tasks {options.tasks}.")
    return given


def array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """(index, count) from Slurm's variables (sbatch, JOB ARRAY SUPPORT); (0, 1) without an array.

    If only a part of an array is submitted again, Slurm does not say how many tasks share the runs.
    """
    if _ARRAY + "ID" not in environment:
        return 0, 1
    names = "ID", "MIN", "MAX", "STEP", "COUNT"
    texts = {_ARRAY + name: environment.get(_ARRAY + name) for name in names}
    for name, text in texts.items():
        if not (text or "").isdecimal():
            raise UserError(
                f"{name}: got {text!r}, expected a number, which Slurm sets. {_OWN_NUMBERS}"
            )
    which, first, last, step, tasks = map(int, texts.values())
    if not step or (last - first) // step + 1 != tasks:
        raise UserError(
            f"got an array of {tasks} tasks from {first} to {last} in steps of {step}, expected "
            f"one without gaps, whose tasks share all runs. {_OWN_NUMBERS}"
        )
    return (which - first) // step, tasks


def jobs(rows: Iterable[str], seeds: int, *, task: int = 0, tasks: int = 1) -> list[Job]:
    """The share of a task; all rows with the first seed come first, for an early table."""
    return [Job(row, seed) for seed in range(seeds) for row in rows][task::tasks]


def train_all(rows: dict[str, ConfigDict], share: list[Job], out: pathlib.Path) -> list[str]:
    """Trains and measures one job after the other; returns the failed ones with their reasons.

    A run that fails, e.g. because its loss is not finite, its memory is too small or its folder
    cannot be written, does not stop the others.
    """
    import jax

    from ssd_jax.runs.training import run_training  # late, because its imports take seconds

    failed = []
    for number, job in enumerate(share, 1):
        config = rows[job.row].copy_and_resolve_references()
        config.seed = job.seed
        title = f"{job.row}, seed {job.seed} ({number} of {len(share)})"
        try:
            if is_finished(config, job.folder(out)):
                print(f"== {title}: finished before")
                continue
            print(f"== {title}", flush=True)
            run_training(config, job.folder(out))
        except (UserError, OSError) as error:
            problem = str(error)
        except jax.errors.JaxRuntimeError as error:
            problem = str(error).partition("\n")[0]
            if "RESOURCE_EXHAUSTED" not in problem:
                raise  # A lost device is lost for the other runs too.
        else:
            continue
        failed.append(f"{job.row}, seed {job.seed}: {problem}")
        print(failed[-1], file=sys.stderr)
    return failed


def is_finished(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether the run has written its report; refuses one of another config."""
    from ssd_jax.config import CONFIG_FILE
    from ssd_jax.runs.same_run import changed_settings

    if not (workdir / REPORT_FILE).is_file():
        return False
    if changed := changed_settings(config, workdir / CONFIG_FILE):
        raise UserError(
            f"{workdir}: the run there was made with another config: {changed}. Give another "
            "--out, or the same settings."
        )
    return True


def records(out: pathlib.Path) -> list[dict]:
    """The record of each finished run in `out`, by row and seed; names folders that do not fit."""
    found = []
    for name, row in ROWS.items():
        seeds = {}
        for report in (out / "runs" / name).glob(f"*/{REPORT_FILE}"):
            if match := re.fullmatch(r"seed_(0|[1-9]\d*)", report.parent.name):
                seeds[int(match[1])] = report
            else:
                print(f"not in the table: {report.parent}, because its name is not seed_N",
                      file=sys.stderr)  # fmt: skip
        known = {"row": name, "published": row.published, "source": row.source}
        found += [known | tables.record(report) for _, report in sorted(seeds.items())]
    return found


if __name__ == "__main__":
    sys.exit(main())
