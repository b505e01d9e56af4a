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
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return options.run(options, rest) or 0
    except (UserError, OSError) as error:
        print(f"{options.parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{options.parser.prog}: interrupted", file=sys.stderr)
        return 130


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

    _add_data_verbs(verbs)
    _add_weight_verbs(verbs)
    return parser


def _add_data_verbs(verbs):
    doctor = _verb(
        verbs,
        "doctor",
        _doctor,
        "look for everything that is wrong with a data set, before a run pays for it",
        example="ssd-jax doctor data/VOCdevkit --split VOC2007/trainval --out doctor/",
        note="Exit code: 0 without errors, 3 with any. docs/doctor.md explains every code.",
    )
    _location(doctor, "location", "SRC")
    doctor.add_argument(
        "--against", metavar="SRC2", help="another set that must not share images with it"
    )
    _names_argument(doctor, "--against-split", "its splits")
    doctor.add_argument("--out", metavar="DIR", help="write the findings (JSON) and a picture")
    doctor.add_argument("--fix", metavar="DST", help="write a copy without what is wrong")
    doctor.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="judge by its default boxes and data.label_width (default: SSD300's boxes)",
    )
    doctor.add_argument(
        "--label-width", type=_count, metavar="N", help="numbers that a label may have"
    )

    convert = _verb(
        verbs,
        "convert",
        _convert,
        "write a data set in another format; images are passed through as they are",
        example="ssd-jax convert data/VOCdevkit train.rec --split VOC2007/trainval",
    )
    _location(convert, "location", "SRC")
    convert.add_argument("destination", metavar="DST")
    convert.add_argument(
        "--format",
        metavar="FORMAT",
        help="voc, json, manifest, coco, recordio, tfds (default: by the suffix of DST, else voc)",
    )
    convert.add_argument("--name", help="of the split that is written (default: as it is read)")
    convert.add_argument(
        "--skip-problems",
        action="store_true",
        help="leave out what cannot be used, instead of stopping",
    )

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
    prepare = kinds.add_parser(
        "prepare", help="prepare a published data set", description="Prepare a data set."
    ).add_subparsers(dest="name", metavar="NAME", required=True)
    voc = _verb(
        prepare,
        "voc",
        _data_prepare_voc,
        "PASCAL VOC 2007 and 2012 from the official archives, in the format of TFDS",
        example="ssd-jax data prepare voc --out data/tfds",
        note="Then train on it with --config.data.train.root='DIR/voc/2007 + DIR/voc/2012'\n"
        "and --config.data.train.image_sets=train,validation.",
    )
    voc.add_argument("--out", required=True, metavar="DIR")
    voc.add_argument(
        "--archives", metavar="DIR", help="a folder with the tar files (default: download them)"
    )
    voc.add_argument("--years", nargs="+", default=("2007", "2012"), choices=("2007", "2012"))


def _add_weight_verbs(verbs):
    weights = verbs.add_parser("weights", help="bring weights in", description="Bring weights in.")
    kinds = weights.add_subparsers(dest="kind", metavar="KIND", required=True)
    importing = _verb(
        kinds,
        "import",
        _weights_import,
        "make the folder of a run of a detector that was trained elsewhere",
        settings=True,
        example="ssd-jax weights import model.tar.gz --out runs/imported --classes cat,dog",
        note="FILE is a model.tar.gz of SageMaker Object Detection, or a weight file (.params,\n"
        ".safetensors, .h5, hf://owner/repository/file) with the config of its network.",
    )
    importing.add_argument("file", metavar="FILE")
    importing.add_argument("--out", required=True, metavar="DIR", type=pathlib.Path)
    importing.add_argument("--config", metavar="FILE[:VARIANT]", help="of a weight file's network")
    _names_argument(importing, "--classes", "in the order of their ids")
    importing.add_argument(
        "--reinit-heads", action="store_true", help="begin with new heads where they do not fit"
    )


def _verb(verbs, name, run, summary, *, example, settings=False, note=""):
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="\n\n".join(
            part for part in (note, SETTINGS if settings else "", f"Example:\n  {example}") if part
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, takes_settings=settings, parser=parser)
    return parser


def _location(parser, name, metavar):
    parser.add_argument(name, metavar=metavar, help="a data set, see docs/data.md")
    _names_argument(parser, "--split", "its splits")
    _names_argument(parser, "--classes", "names in the order of their ids")


def _names_argument(parser, option, text):
    parser.add_argument(
        option, type=_names, action="extend", default=[], metavar="NAME,NAME,...", help=text
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text.strip() else []


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
    from ssd_jax.config_check import check
    from ssd_jax.runs import run_training
    from ssd_jax.sharding import use_cpu_cores

    config = configs.load_config(options.config)
    configs.override(config, configs.split_assignments(rest))
    check(config)
    use_cpu_cores(config.batch_size)
    run_training(config, options.workdir)


def _evaluate(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.config_check import check
    from ssd_jax.runs import run_evaluation
    from ssd_jax.sharding import use_cpu_cores

    config = configs.read_config(options.workdir / "config.json")
    configs.override(config, configs.split_assignments(rest))
    check(config)
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

    _refuse_another_set(options.folder, train=options.train, val=options.val)
    write_shapes(
        options.folder,
        train=options.train,
        val=options.val,
        seed=options.seed,
        progress=lambda indices: tqdm(indices, desc="drawing", disable=None),
    )
    print(f"{options.folder}: {options.train} images to train on, {options.val} to measure on")


def _refuse_another_set(folder: pathlib.Path, *, train: int, val: int) -> None:
    """Shapes are written over shapes; what would stay of a larger set would mix with them."""
    names = {f"{index:06d}" for index in range(train + val)}
    names |= {split for split, count in (("train", train), ("val", val)) if count}
    there = [*folder.glob("Annotations/*.xml"), *folder.glob("ImageSets/Main/*.txt")]
    if others := [path for path in there if path.stem not in names]:
        raise UserError(
            f"{folder} holds another set ({min(others)}): give an empty folder, or remove this one"
        )


def _data_prepare_voc(options, rest):
    from ssd_jax.data.prepare import prepare_voc

    counts = prepare_voc(options.out, archives=options.archives, years=options.years)
    for name, splits in counts.items():
        images = ", ".join(f"{split} {count:,} images" for split, count in splits.items())
        print(f"{options.out}/{name}: {images}")


def _doctor(options, rest):
    from ssd_jax.doctor_report import run_doctor

    anchors, label_width = None, options.label_width
    if options.config:
        from ssd_jax import experiment
        from ssd_jax.config import load_config
        from ssd_jax.config_check import check

        config = load_config(options.config)
        check(config)
        # The default boxes are the same for any number of classes.
        anchors = experiment.build_network(config, 1).anchors
        if label_width is None:
            label_width = config.data.label_width
    return run_doctor(
        options.location,
        split=options.split,
        classes=options.classes or None,
        against=options.against,
        against_split=options.against_split,
        fix=options.fix,
        out=options.out,
        anchors=anchors,
        label_width=label_width,
    )


def _convert(options, rest):
    from ssd_jax.data.convert import run_convert

    done = run_convert(
        options.location,
        options.destination,
        split=options.split,
        format=options.format,
        name=options.name,
        classes=options.classes or None,
        problems="skip" if options.skip_problems else "error",
    )
    print(done)


def _weights_import(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.importing import import_weights

    report = import_weights(
        options.file,
        options.out,
        config=configs.load_config(options.config) if options.config else None,
        classes=tuple(options.classes),
        assignments=configs.split_assignments(rest),
        reinit_heads=options.reinit_heads,
    )
    print(report)
    print(f"a run to use: ssd-jax predict --workdir {options.out} IMAGE... --out found/")
