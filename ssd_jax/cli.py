"""The command line, `ssd-jax VERB`. Nothing heavy is imported before a verb runs."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from ssd_jax import __version__
from ssd_jax.errors import UserError

SETTINGS = """\
Any setting of the config can be changed on the command line, for example
  --config.batch_size=16 --config.optimizer.learning_rate=5e-4 --config.model.dtype=bfloat16
All settings with their defaults and meaning stand in ssd_jax/config.py.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; a mistake of the user's is one message on stderr and exit code 2."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not getattr(options, "takes_settings", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.run(options, rest)
    except (UserError, OSError) as error:
        print(f"ssd-jax {options.verb}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ssd-jax {options.verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their arguments."""
    parser = argparse.ArgumentParser(
        prog="ssd-jax",
        description="Train, evaluate and use SSD object detectors.",
        epilog="Start with: make quickstart. Each verb explains itself: ssd-jax VERB --help.",
    )
    parser.add_argument("--version", action="version", version=f"ssd-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    train = _verb(
        verbs,
        "train",
        _train,
        "train a detector, or go on where a run was stopped",
        settings=True,
        example="ssd-jax train --config configs/bccd.py --workdir runs/bccd",
    )
    train.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="see configs/")
    _workdir(train, "folder of the run; an earlier run there is resumed")

    evaluate = _verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure a trained detector",
        settings=True,
        example="ssd-jax evaluate --workdir runs/bccd --split test",
    )
    _workdir(evaluate, "folder of a run")
    evaluate.add_argument("--split", choices=("val", "test"), help="default: as the run's report")
    _step(evaluate)

    predict = _verb(
        verbs,
        "predict",
        _predict,
        "detect objects in pictures: JSON and drawings",
        example="ssd-jax predict --workdir runs/bccd photo.jpg --out found/",
    )
    _workdir(predict, "folder of a run")
    predict.add_argument("images", nargs="+", metavar="IMAGE", type=pathlib.Path)
    predict.add_argument("--out", required=True, metavar="DIR", type=pathlib.Path)
    predict.add_argument(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="lowest score that is drawn (default: %(default)s); the JSON has all detections",
    )
    _step(predict)

    data = verbs.add_parser("data", help="make data sets", description="Make data sets.")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    shapes = _verb(
        kinds,
        "shapes",
        _data_shapes,
        "generate shapes on textured backgrounds, as a VOC folder",
        example="ssd-jax data shapes shapes/ --train 3000 --val 300",
    )
    shapes.add_argument("folder", type=pathlib.Path)
    shapes.add_argument(
        "--train", type=_count, default=3000, metavar="N", help="images (%(default)s)"
    )
    shapes.add_argument("--val", type=_count, default=300, metavar="N", help="images (%(default)s)")
    shapes.add_argument("--seed", type=_count, default=0, help="(%(default)s)")
    return parser


def _verb(verbs, name, run, summary, *, example, settings=False):
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=(SETTINGS if settings else "") + f"\nExample:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, takes_settings=settings)
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _workdir(parser, text):
    parser.add_argument("--workdir", required=True, metavar="DIR", type=pathlib.Path, help=text)


def _step(parser):
    parser.add_argument(
        "--step",
        metavar="last|best|N",
        help="which checkpoint (default: the config's checkpoint.select)",
    )


def _train(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.runs import run_training
    from ssd_jax.sharding import use_cpu_cores

    config = configs.load_config(options.config)
    configs.override(config, configs.split_assignments(rest))
    configs.check(config)
    use_cpu_cores(config.batch_size)
    run_training(config, options.workdir)


def _evaluate(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.runs import run_evaluation
    from ssd_jax.sharding import use_cpu_cores

    config = configs.read_config(options.workdir / "config.json")
    configs.override(config, configs.split_assignments(rest))
    configs.check(config)
    use_cpu_cores(config.batch_size)
    run_evaluation(config, options.workdir, split=options.split, step=options.step)


def _predict(options, rest):
    from ssd_jax.runs import run_prediction

    run_prediction(
        options.workdir, options.images, options.out, step=options.step, score=options.score
    )


def _data_shapes(options, rest):
    from tqdm import tqdm

    from ssd_jax.data.shapes import write_shapes

    write_shapes(
        options.folder,
        train=options.train,
        val=options.val,
        seed=options.seed,
        progress=lambda indices: tqdm(indices, desc="drawing", disable=None),
    )
    print(f"{options.folder}: {options.train} images to train on, {options.val} to measure on")
