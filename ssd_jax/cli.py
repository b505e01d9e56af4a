"""The command line, `ssd-jax VERB`. Nothing heavy is imported before a verb runs."""

import argparse
import sys
from collections.abc import Sequence

from ssd_jax import __version__
from ssd_jax.commands import convert, data, doctor, evaluate, predict, train, weights
from ssd_jax.errors import UserError

# In the order in which --help lists them.
COMMANDS = (train, evaluate, predict, doctor, convert, data, weights)


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

    for command in COMMANDS:
        command.add(verbs)
    return parser
