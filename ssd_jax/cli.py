"""The command line, `ssd-jax VERB`. Nothing heavy is imported before a verb runs."""

import argparse
import errno
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Sequence

from ssd_jax import __version__
from ssd_jax.caches import keep_compiled_programs
from ssd_jax.commands import (
    benchmark,
    convert,
    data,
    doctor,
    evaluate,
    export,
    predict,
    report,
    sagemaker,
    serve,
    train,
    weights,
)
from ssd_jax.errors import Stopped, UserError
from ssd_jax.huge_pages import start_with_huge_pages
from ssd_jax.literals import with_home

# EX_TEMPFAIL of BSD's sysexits.h: not an error, but to be run again.
EXIT_STOPPED = 75
# What a shell tells of a program that SIGPIPE ended.
EXIT_NOBODY_READS = 128 + 13

# In the order in which --help lists them.
COMMANDS = (train, evaluate, predict, export, report, serve, sagemaker,
            doctor, convert, data, weights, benchmark)  # fmt: skip


# Verbs that run long enough to repay a restart with huge pages.
LONG_COMPUTATIONS = (["train"], ["evaluate"], ["benchmark"], ["sagemaker", "train"])


def program() -> int:
    """`main` as a program of its own, which alone may choose how its memory is allocated."""
    # Others gain nothing, and OpenVINO, which takes its memory once, answers a first picture later
    # with them (docs/performance.md).
    if any(sys.argv[1 : 1 + len(words)] == words for words in LONG_COMPUTATIONS):
        start_with_huge_pages()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; a mistake of the user's is one message on stderr and exit code 2."""
    try:
        code = _run_verb(arguments)
    except Exception:
        if not _of_several():
            raise
        traceback.print_exc()
        code = 1
    if code not in (0, EXIT_STOPPED) and _of_several():
        from ssd_jax.cluster import leave

        leave(code)
    return code


def _of_several() -> bool:
    """Whether this process is one of a run of several; without importing JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _run_verb(arguments: Sequence[str] | None) -> int:
    options, rest = parse(sys.argv[1:] if arguments is None else arguments)
    if rest and not getattr(options, "takes_settings", False):
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    keep_compiled_programs()
    try:
        code = options.run(options, rest) or 0
        sys.stdout.flush()
        return code
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_NOBODY_READS
        print(f"{options.parser.prog}: error: {_told(error)}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"{options.parser.prog}: {stop}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print(f"{options.parser.prog}: interrupted", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a verb, and what it has to understand itself.

    A shell makes the home folder of the ~ in `--name ~/x`; in `--name=~/x` it is made here.
    """
    expanded = []
    for argument in arguments:
        named = argument.startswith("-")
        name, equals, value = argument.partition("=") if named else ("", "", argument)
        expanded.append(f"{name}{equals}{with_home(value)}")
    return build_parser().parse_known_args(expanded)


def _nobody_reads() -> bool:
    """Whether what reads our output has left, as `| head` does when it has enough."""
    ends = select.poll()
    ends.register(sys.stdout, 0)
    left = bool(ends.poll(0))
    if left:  # Python flushes at the end, which would be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def _told(error: UserError | OSError) -> str:
    """What to do about a full disk too, of which the system says not even where it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error}. Make room where the command writes (--workdir or --out, the cache folder, "
            f"{tempfile.gettempdir()}), and give it again."
        )
    return str(error)


def build_parser() -> argparse.ArgumentParser:
    """All verbs with their arguments."""
    parser = argparse.ArgumentParser(
        prog="ssd-jax",
        description="Train, evaluate and use SSD object detectors.",
        epilog="New here? Run `make quickstart`. More: ssd-jax VERB --help, and docs/README.md.",
    )
    parser.add_argument("--version", action="version", version=f"ssd-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    for command in COMMANDS:
        command.add(verbs)
    return parser
