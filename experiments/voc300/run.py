"""Compares the two original recipes, and `best` with and without its parts, on a few photos.

    python experiments/voc300/run.py --data FOLDER --weights FILE [--reduced] [--epochs N]
        [--arm NAME ...] [--seed N ...] [--runs DIR] [--out DIR] [--keep]

FOLDER is in VOC layout with the image sets train and val; FILE has an ImageNet VGG16. Runs are in
--runs; finished ones are not repeated, and one that was stopped is resumed. The results so far are
then written to --out: results.jsonl, table.md, curves.png, ablation.png. Lines of results.jsonl
about runs elsewhere are kept. README.md has more.
"""

import argparse
import functools
import os
import pathlib
import shutil
import sys
from typing import Any

from ssd_jax.caches import keep_compiled_programs

keep_compiled_programs()  # before the others import JAX

import numpy as np  # noqa: E402
from arms import FULL, REDUCED, Scale, arm_config, arms, folder_of, of_length  # noqa: E402
from figures import collect, merged, tell, told_before  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from ssd_jax.commands.common import positive_number  # noqa: E402
from ssd_jax.config import save_config  # noqa: E402
from ssd_jax.data.open import open_data  # noqa: E402
from ssd_jax.errors import Stopped, UserError  # noqa: E402
from ssd_jax.files import write_json  # noqa: E402
from ssd_jax.runs.log import REPORT_FILE  # noqa: E402

HERE = pathlib.Path(__file__).parent
SEEDS = (0, 1, 2)


def run_arm(
    name: str,
    seed: int,
    *,
    scale: Scale,
    runs: pathlib.Path,
    keep: bool = False,
    mesh: Any = None,
    **given,
) -> None:
    """Trains and measures an arm, unless its folder has a report.json already.

    `mesh` defaults to all devices; the other arguments are those of `arm_config`.
    """
    arm = arms(scale)[name]
    config = arm_config(arm, seed=seed, scale=scale, **given)
    workdir = folder_of(runs, name, seed)
    if (workdir / REPORT_FILE).is_file():
        refuse_other_settings(config, workdir)
        return
    print(f"\n==== {name}, seed {seed} ====", flush=True)
    if arm.weights_of:
        run_arm(arm.weights_of, seed, scale=scale, runs=runs, keep=keep, mesh=mesh, **given)
        measure_again(config, workdir, folder_of(runs, arm.weights_of, seed), mesh=mesh)
        return
    from ssd_jax.runs.training import run_training

    run_training(config, workdir, mesh=mesh)
    needed = {each.weights_of for each in arms(scale).values()}
    if not keep and name not in needed:
        shutil.rmtree(workdir / "checkpoints")


def measure_again(
    config: ConfigDict, workdir: pathlib.Path, trained: pathlib.Path, *, mesh: Any = None
) -> None:
    """Measures the weights of a finished run with the settings of another arm."""
    from ssd_jax.runs.outcome import measure, report, table

    measured = measure(config, trained, mesh=mesh)
    print(table(measured))
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, workdir / "config.json")
    write_json(workdir / REPORT_FILE, report(config, measured))


def refuse_other_settings(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses a finished run that was made with other settings."""
    from ssd_jax.config import CONFIG_FILE
    from ssd_jax.runs.same_run import changed_settings

    if changed := changed_settings(config, workdir / CONFIG_FILE):
        raise UserError(f"{workdir}: finished with other settings: {changed}. Give another --runs.")


def fewer_images(data: pathlib.Path, folder: pathlib.Path, scale: Scale) -> pathlib.Path:
    """`data` itself, or a folder with evenly chosen images of each set, as links to `data`."""
    if scale.train is None and scale.val is None:
        return data
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    for name in ("Annotations", "JPEGImages"):
        link, target = folder / name, (data / name).resolve()
        if not link.is_symlink():
            link.symlink_to(target)
        elif link.resolve() != target:
            raise UserError(
                f"{link}: the runs here are on {link.resolve().parent}, got --data {data}. Give "
                "another --runs."
            )
    for split, count in (("train", scale.train), ("val", scale.val)):
        ids = (data / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        chosen = np.linspace(0, len(ids) - 1, min(count or len(ids), len(ids))).round().astype(int)
        (lists / f"{split}.txt").write_text("".join(f"{ids[index]}\n" for index in chosen))
    return folder


def main(
    arguments: list[str] | None = None, *, scale: Scale | None = None, mesh: Any = None
) -> None:
    """Runs the chosen arms, then writes the results of all that have finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a folder in VOC layout")
    parser.add_argument("--weights", required=True, help="an ImageNet VGG16, see docs/weights.md")
    parser.add_argument("--reduced", action="store_true", help="a size for a CPU")
    parser.add_argument(
        "--epochs", type=positive_number, metavar="N", help="another length; has results of its own"
    )
    parser.add_argument("--arm", action="append", choices=arms(FULL), metavar="NAME")
    parser.add_argument("--seed", action="append", type=int, metavar="N")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/voc300"))
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--keep", action="store_true", help="keep all checkpoints")
    options = parser.parse_args(arguments)
    scale = scale or (REDUCED if options.reduced else FULL)
    if options.epochs and options.epochs != scale.epochs:
        scale = of_length(scale, options.epochs)
    runs = options.runs / scale.name
    from ssd_jax.sharding import use_cpu_cores

    use_cpu_cores(scale.batch_size // 4)  # the images of a mosaic are on one device
    run = functools.partial(
        run_arm,
        scale=scale,
        runs=runs,
        keep=options.keep,
        mesh=mesh,
        data=fewer_images(options.data, runs / "data", scale),
        weights=options.weights,
        classes=open_data(str(options.data), split=("train",)).classes,
    )
    for seed in options.seed or SEEDS:
        for name in options.arm or arms(scale):
            run(name, seed)
    out = options.out / scale.name
    tell(merged(collect(runs, scale), told_before(out, scale), scale), scale, out)


if __name__ == "__main__":
    try:
        main()
    except (UserError, Stopped, OSError) as error:
        sys.exit(f"{os.path.basename(__file__)}: {error}")
