"""`ssd-jax serve`."""

import argparse
import os
import pathlib
import sys

from ssd_jax.commands.common import (
    check_detector,
    count,
    detector_arguments,
    local_path,
    open_detector,
    positive,
    verb,
)
from ssd_jax.errors import UserError

# The most that data/decode.py accepts.
MOST_MEGAPIXELS = 128
LARGEST_PORT = 65535
TOKEN_VARIABLE = "SSD_JAX_TOKEN"
_PACKAGES = ("uvicorn", "starlette", "python_multipart", "prometheus_client")


def add(verbs) -> None:
    """Adds the verb."""
    serve = verb(
        verbs,
        "serve",
        _serve,
        "serve a detector over HTTP",
        example="ssd-jax serve --model model/ --port 8080",
        note="docs/serving.md describes the API; a running server shows it at /docs.",
    )
    detector_arguments(serve)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on, 0.0.0.0 for all (default: %(default)s)",
    )
    serving_arguments(serve)


def serving_arguments(parser) -> None:
    """Adds the options that every server has."""
    parser.add_argument("--port", type=_port, default=8080, help="default: %(default)s")
    parser.add_argument(
        "--batches",
        type=_sizes,
        metavar="N,N,...",
        help="batch sizes to compile (default: 1,4; on an accelerator 1,2,4,8,16)",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=64,
        metavar="N",
        help="images in progress before requests get 503 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-megabytes",
        type=positive,
        default=20,
        metavar="N",
        help="largest request, in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=_megapixels,
        default=64,
        metavar="N",
        help="largest image, in 2**20 pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=local_path,
        help=f"file with the token that clients must send (default: ${TOKEN_VARIABLE}, if set)",
    )


def _serve(options, rest):
    check_detector(options)
    end(serve_detector(options))


def end(busy: bool) -> None:
    """Ends the process of a `busy` engine: an ordinary exit would wait for it, perhaps for ever."""
    if busy:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def serve_detector(options) -> bool:
    """Serves the detector of `detector_arguments` with the options of `serving_arguments`.

    Returns whether its engine still computes when all is answered.
    """
    try:
        from ssd_jax.serve.pictures import Limits
        from ssd_jax.serve.server import listen, serve
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise UserError(
            f"the server needs the package {error.name}, which is not installed. Install "
            "'ssd-jax[serve]'."
        ) from error

    token = read_token(options.token_file)
    # Before the detector is opened, which takes long.
    with listen(options.host, options.port) as listener:
        detector = open_detector(options)
        return serve(
            detector,
            listener,
            batches=options.batches or default_batches(detector.engine),
            limits=Limits(
                bytes=options.max_megabytes * 2**20,
                pixels=options.max_megapixels * 2**20,
                queue=options.queue,
            ),
            token=token,
        )


def default_batches(engine: str) -> tuple[int, ...]:
    """The batch sizes: few on a CPU, where they save little and each takes seconds to compile."""
    import jax

    on_cpu = engine != "jax" or jax.default_backend() == "cpu"
    return (1, 4) if on_cpu else (1, 2, 4, 8, 16)


def read_token(path: pathlib.Path | None) -> str | None:
    """The token, from a file or the environment, because process arguments are not private."""
    where = TOKEN_VARIABLE if path is None else str(path)
    given = os.environb.get(TOKEN_VARIABLE.encode()) if path is None else path.read_bytes()
    if given is None:
        return None
    try:
        token = given.decode().strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not text in UTF-8, expected a token.") from error
    if not token:
        raise UserError(f"{where} is empty, expected a token.")
    return token


def _port(text: str) -> int:
    value = count(text)
    if value > LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, expected 0 to {LARGEST_PORT}")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({positive(each) for each in text.split(",")}))
    except argparse.ArgumentTypeError as error:
        message = f"{text!r} is not a list of batch sizes such as 1,4"
        raise argparse.ArgumentTypeError(message) from error


def _megapixels(text: str) -> int:
    value = positive(text)
    if value > MOST_MEGAPIXELS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {MOST_MEGAPIXELS}")
    return value
