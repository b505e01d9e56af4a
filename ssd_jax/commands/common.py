"""Arguments and helpers that the verbs of the command line share."""

import argparse
import contextlib
import math
import pathlib
import re
import tempfile
from collections.abc import Mapping

from ssd_jax.errors import UserError
from ssd_jax.literals import read_names

# The engines of `export.engines`, repeated because that file imports JAX.
ENGINES = ("auto", "jax", "onnxruntime", "openvino", "openvino-bf16")

SETTINGS = """\
Any setting of the config can be changed on the command line, for example
  --config.batch_size=16 --config.optimizer.learning_rate=5e-4 --config.model.dtype=bfloat16
ssd_jax/config.py lists all settings with their defaults and meaning.
"""


def verb(verbs, name, run, summary, *, example, settings=False, note=""):
    """A verb with its help; `run(options, rest)` executes it and may return the exit code.

    With `settings` it takes `--config.NAME=VALUE`, which is passed to `run` in `rest`.
    """
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


def refuse_misplaced(given: Mapping[str, object], where: str) -> None:
    """Refuses the options that are given, by name, although they have no meaning `where`."""
    for name, value in given.items():
        if value:
            raise UserError(f"{name} cannot be used {where}. Leave it out.")


def location(parser, name, metavar):
    """Adds the arguments of a data set: its location, splits and classes."""
    parser.add_argument(name, metavar=metavar, help="a data set, see docs/data.md")
    names_argument(parser, "--split", "splits of the data set, e.g. train or VOC2007/trainval")
    names_argument(parser, "--classes", "class names in the order of their ids")


def is_printed(path: pathlib.Path | None) -> bool:
    """Whether `--json -` was given, with which the figures are printed last."""
    return str(path) == "-"


def names_argument(parser, option, text):
    """Adds an option that takes names separated by commas, and may be repeated."""
    parser.add_argument(
        option, type=read_names, action="extend", default=[], metavar="NAME,NAME,...", help=text
    )


def whole_number(text: str) -> int:
    """Reads "12"."""
    if not re.fullmatch(r"\s*[+-]?\d+\s*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def count(text: str) -> int:
    """Reads a whole number that is not negative."""
    value = whole_number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    return value


def part_of_one(text: str) -> float:
    """Reads a number from 0 to 1, e.g. a score."""
    wrong = argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    try:
        value = float(text)
    except ValueError as error:
        raise wrong from error
    if not 0 <= value <= 1:
        raise wrong
    return value


def positive_number(text: str) -> float:
    """Reads a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def seconds(text: str) -> float:
    """Reads "90", "90s", "45m", "3h" or "1.5d"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 45m or 3h")
    number, unit = match.groups()
    return float(number) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 1")
    return value


def cluster_arguments(parser):
    """Adds the options by which several processes become one run; `join_cluster` reads them."""
    group = parser.add_argument_group(
        "several processes", "Detected under srun, mpirun and Kubernetes; see docs/distributed.md."
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, with a free port"
    )
    group.add_argument(
        "--num-processes",
        type=positive,
        metavar="N",
        help="number of processes of the run; 1 ignores any cluster",
    )
    group.add_argument(
        "--process-id", type=count, metavar="I", help="index of this process, from 0"
    )
    group.add_argument(
        "--start-timeout",
        type=positive,
        default=300,
        metavar="SECONDS",
        help="how long to wait for the other processes (default: %(default)s)",
    )


def cluster_options(options) -> dict[str, bool]:
    """The options of `cluster_arguments`, and whether each is given."""
    names = ("coordinator", "num_processes", "process_id", "start_timeout")
    return {
        f"--{name.replace('_', '-')}": vars(options)[name] != options.parser.get_default(name)
        for name in names
    }


def join_cluster(options, config):
    """Joins the run of several processes, if there is one; must come before any use of JAX."""
    from ssd_jax import cluster
    from ssd_jax.config_check import images_together

    cluster.start(
        batch_size=config.batch_size // images_together(config),
        coordinator=options.coordinator,
        num_processes=options.num_processes,
        process_id=options.process_id,
        timeout=options.start_timeout,
    )


def workdir(parser, text, *, required=True):
    """Adds `--workdir`, the folder of a run, local or at a URL."""
    parser.add_argument(
        "--workdir", required=required, metavar="DIR", type=folder_or_url, help=text
    )


def local_path(text: str) -> pathlib.Path:
    """Reads a local path; `pathlib` would turn a URL into a folder called "s3:"."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a path on this machine")
    return pathlib.Path(text)


def folder_or_url(text: str) -> pathlib.Path | str:
    """Reads a path or a URL; `data.storage` and `train.mirror` make a local folder of a URL."""
    if "://" not in text:
        return pathlib.Path(text)
    from ssd_jax.data.remote import SCHEMES

    if text.partition("://")[0] not in SCHEMES:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a folder, or a URL of {', '.join(SCHEMES)}"
        )
    return text


@contextlib.contextmanager
def folder_to_fill(location: pathlib.Path | str):
    """A folder to write to: `location` itself, or one whose files are uploaded to its URL."""
    if isinstance(location, pathlib.Path):
        yield location
        return
    from ssd_jax.data.remote import open_to_write
    from ssd_jax.data.storage import upload

    open_to_write(location)  # Fails before the work, not after it.
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)
        upload(folder, location)


def place_in(location: pathlib.Path | str, name: str) -> str:
    """The path or URL of a file in a folder."""
    if isinstance(location, pathlib.Path):
        return str(location / name)
    return f"{location.rstrip('/')}/{name}"


def step(parser):
    """Adds `--step`, the checkpoint of a run."""
    parser.add_argument(
        "--step",
        metavar="last|best|N",
        help="which checkpoint (default: the config's checkpoint.select)",
    )


def detector_arguments(parser):
    """Adds the options of a run or an exported detector; `check_detector` checks them."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--workdir", metavar="DIR", type=folder_or_url, help="folder of a run, or s3://..."
    )
    which.add_argument(
        "--model",
        metavar="DIR",
        type=folder_or_url,
        help="detector that `ssd-jax export` wrote: the folder, its .tar.gz, or the URL of either",
    )
    step(parser)
    engine_argument(parser)


def open_detector(options):
    """The detector that the options of `detector_arguments` name: of a run, or exported."""
    if options.model:
        from ssd_jax.export.exported import open_exported

        return open_exported(options.model, options.engine or "auto")
    from ssd_jax.detector import Detector  # imports Orbax, which an exported one does not need
    from ssd_jax.train.mirror import workdir_to_read

    return Detector.load(workdir_to_read(options.workdir), step=options.step)


def engine_argument(parser):
    """Adds `--engine`, which runs the network of an exported detector."""
    parser.add_argument(
        "--engine",
        type=engine_name,
        metavar="NAME",
        help=f"engine that runs an exported model: {', '.join(ENGINES[1:])} "
        "(default: auto, the fastest float32 engine on this machine)",
    )


def engine_name(text: str) -> str:
    """Reads the name of an engine."""
    if text not in ENGINES:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(ENGINES)}")
    return text


def check_detector(options) -> None:
    """Refuses `--step` with an exported --model, and `--engine` with the --workdir of a run."""
    if options.model:
        refuse_misplaced({"--step": options.step}, "with --model")
    else:
        refuse_misplaced({"--engine": options.engine}, "with --workdir")
