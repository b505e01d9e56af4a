"""The command line, `ssd-jax VERB`. Nothing heavy is imported before a verb runs."""

import argparse
import errno
import io
import os
import re
import select
import signal
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
from ssd_jax.errors import Stopped, UserError, nearest
from ssd_jax.huge_pages import start_with_huge_pages
from ssd_jax.literals import with_home

# EX_TEMPFAIL of BSD's sysexits.h: not an error; run the command again.
EXIT_STOPPED = 75
# The exit code that a shell gives a program ended by SIGPIPE.
EXIT_NOBODY_READS = 128 + 13

# In the order in which --help lists them.
COMMANDS = (train, evaluate, predict, export, report, serve, sagemaker,
            doctor, convert, data, weights, benchmark)  # fmt: skip


# Verbs that run long enough to repay a restart with huge pages.
LONG_COMPUTATIONS = (["train"], ["evaluate"], ["benchmark"], ["sagemaker", "train"])
# Verbs that remove unfinished files, and end their children, when they are stopped.
TIDY = (["predict"], ["export"], ["convert"])


def program() -> int:
    """`main` as a program of its own; only such a process may choose its memory allocation."""
    # Other verbs gain nothing, and OpenVINO takes longer for its first image with huge pages
    # (docs/performance.md).
    if _is_one_of(LONG_COMPUTATIONS):
        start_with_huge_pages()
    # In a container, the kernel ignores SIGTERM for process 1 unless it has a handler.
    if os.getpid() == 1 or _is_one_of(TIDY):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return main()


def _is_one_of(verbs: Sequence[Sequence[str]]) -> bool:
    return any(sys.argv[1 : 1 + len(verb)] == verb for verb in verbs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; for a user's mistake prints one message to stderr and returns 2."""
    for stream in (sys.stdout, sys.stderr):
        # The name of a file may have bytes that are not UTF-8, or that the terminal does not have.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
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
    """Whether the run has several processes; without importing JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _run_verb(arguments: Sequence[str] | None) -> int:
    options, rest = parse(sys.argv[1:] if arguments is None else arguments)
    if rest and not getattr(options, "takes_settings", False):
        options.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    keep_compiled_programs()
    try:
        _refuse_mistyped(options, rest)
        code = options.run(options, rest) or 0
        sys.stdout.flush()
        return code
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_NOBODY_READS
        print(f"{options.parser.prog}: error: {_message(error)}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"{options.parser.prog}: {stop}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print(f"{options.parser.prog}: interrupted", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a verb, and the arguments that it parses itself.

    The shell expands the ~ in `--name ~/x`; in `--name=~/x` it is expanded here.
    """
    expanded = []
    for argument in arguments:
        named = argument.startswith("-")
        name, equals, value = argument.partition("=") if named else ("", "", argument)
        expanded.append(f"{name}{equals}{with_home(value)}")
    return build_parser().parse_known_args(expanded)


def _refuse_mistyped(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Refuses what is neither an option of the verb nor a setting."""
    for word in rest:
        name = word.partition("=")[0]
        if name.startswith("--") and not name.startswith("--config."):
            from ssd_jax.config import default_config, flat_items

            known = re.findall(r"--[a-z][\w-]*", options.parser.format_usage())
            known += [f"--config.{setting}" for setting, _ in flat_items(default_config())]
            ends = [each for each in known if each.endswith(f".{name[2:].replace('-', '_')}")]
            near = ends[0] if ends else nearest(name, known, likeness=0.6)
            raise UserError(
                f"{name}: there is no such option. "
                + (f"The nearest is {near}. " if near else "")
                + "Settings are given as --config.NAME=VALUE."
            )


def _nobody_reads() -> bool:
    """Whether the reader of our output has closed it, as `| head` does after some lines."""
    ends = select.poll()
    ends.register(sys.stdout, 0)
    left = bool(ends.poll(0))
    if left:  # Python flushes stdout at exit and would print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def _message(error: UserError | OSError) -> str:
    """The message; with advice for a full disk, because the system's does not name the path."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{error}. Make room where the command writes (--workdir or --out, the cache folder, "
            f"{tempfile.gettempdir()}), and give the command again."
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
