"""`ssd-jax sagemaker train` and `ssd-jax sagemaker serve`."""

import os
import pathlib

from ssd_jax.commands.common import engine_argument, local_path, verb
from ssd_jax.commands.serve import end, serve_detector, serving_arguments
from ssd_jax.errors import UserError

# SageMaker starts a container with only the argument `serve`, so options may be given in the
# environment.
VARIABLES = {
    f"SSD_JAX_{option.upper()}": option
    for option in ("engine", "batches", "queue", "max_megabytes", "max_megapixels")
}
# Set in a batch transform: docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
PAYLOAD_VARIABLE = "SAGEMAKER_MAX_PAYLOAD_IN_MB"


def add(verbs) -> None:
    """Adds the verb."""
    sagemaker = verbs.add_parser(
        "sagemaker",
        help="replace SageMaker's Object Detection, in its container or anywhere",
        description="Replace SageMaker's Object Detection; see docs/sagemaker.md.",
    )
    kinds = sagemaker.add_subparsers(dest="kind", metavar="KIND", required=True)
    train = verb(
        kinds,
        "train",
        _train,
        "run the training job that ROOT/input describes, and write the model to ROOT/model",
        settings=True,
        example="ssd-jax sagemaker train --root /opt/ml",
    )
    serving = verb(
        kinds,
        "serve",
        _serve,
        "serve the model in ROOT/model over HTTP",
        example="ssd-jax sagemaker serve --root /opt/ml",
        note="Options that are not given are read from the environment:\n  "
        + "\n  ".join(VARIABLES),
    )
    for parser in (train, serving):
        parser.add_argument(
            "--root",
            type=local_path,
            default=pathlib.Path("/opt/ml"),
            metavar="ROOT",
            help="default: %(default)s",
        )
    engine_argument(serving)
    serving_arguments(serving)
    # argparse converts a default that is a string as it converts the option.
    serving.set_defaults(host="0.0.0.0", workdir=None, step=None, **_from_environment())


class _Variable(str):
    """The value of an environment variable, which messages show with the name of the variable."""

    name = ""

    def __repr__(self) -> str:
        return f"{super().__repr__()} (the environment variable {self.name})"


def _from_environment() -> dict[str, str]:
    found = {}
    for name, option in ((PAYLOAD_VARIABLE, "max_megabytes"), *VARIABLES.items()):
        text = _Variable(os.environ.get(name, ""))
        text.name = name
        if text and not (name == PAYLOAD_VARIABLE and text == "0"):
            found[option] = text
    return found


def _train(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.sagemaker.train import run_job

    run_job(options.root, configs.split_assignments(rest))


def _serve(options, rest):
    from ssd_jax.sagemaker.original import holds_original, imported_original

    model = options.root / "model"
    if not model.is_dir():
        raise UserError(
            f"{model}: there is no such folder; it must contain the unpacked model. Mount or copy "
            "it there, or give another --root that has the folder model."
        )
    if not holds_original(model):
        options.model = model
        end(serve_detector(options))
        return
    if options.engine not in (None, "auto", "jax"):
        raise UserError(
            f"{model} contains an artefact of SageMaker's own algorithm, which only the engine jax "
            f"can run, but got {options.engine!r}. To use that engine, convert the model.tar.gz "
            "with `ssd-jax weights import` and `ssd-jax export --onnx` first."
        )
    with imported_original(model) as run:
        options.model, options.workdir = None, str(run)
        busy = serve_detector(options)
    end(busy)
