"""What the verbs of the command line share."""

import argparse
import pathlib

SETTINGS = """\
Any setting of the config can be changed on the command line, for example
  --config.batch_size=16 --config.optimizer.learning_rate=5e-4 --config.model.dtype=bfloat16
All settings with their defaults and meaning stand in ssd_jax/config.py.
"""


def verb(verbs, name, run, summary, *, example, settings=False, note=""):
    """A verb with its help; `run(options, rest)` does it, and may give the exit code.

    With `settings` it takes `--config.NAME=VALUE`, which `run` finds in `rest`.
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


def location(parser, name, metavar):
    """A data set, with its splits and classes."""
    parser.add_argument(name, metavar=metavar, help="a data set, see docs/data.md")
    names_argument(parser, "--split", "its splits")
    names_argument(parser, "--classes", "names in the order of their ids")


def names_argument(parser, option, text):
    """An option that takes names with commas between them, and may be repeated."""
    parser.add_argument(
        option, type=names, action="extend", default=[], metavar="NAME,NAME,...", help=text
    )


def names(text: str) -> list[str]:
    """Reads "a, b"."""
    return [name.strip() for name in text.split(",")] if text.strip() else []


def count(text: str) -> int:
    """Reads a whole number that is not negative."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def workdir(parser, text):
    """The folder of a run."""
    parser.add_argument("--workdir", required=True, metavar="DIR", type=pathlib.Path, help=text)


def step(parser):
    """Which checkpoint of a run."""
    parser.add_argument(
        "--step",
        metavar="last|best|N",
        help="which checkpoint (default: the config's checkpoint.select)",
    )
