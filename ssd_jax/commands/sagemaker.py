"""`ssd-jax sagemaker train` and `ssd-jax sagemaker serve`."""

import os
import pathlib

from ssd_jax.commands.common import engine_argument, local_path, verb
from ssd_jax.commands.serve import serve_detector, serving_arguments
from ssd_jax.errors import UserError

# SageMaker starts a container with the word `serve` alone, so options may stand in the environment.
VARIABLES = {
    f"SSD_JAX_{option.upper()}": option
    for option in ("engine", "batches", "queue", "max_megabytes", "max_megapixels")
}
# Of a batch transform: docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
PAYLOAD_VARIABLE = "SAGEMAKER_MAX_PAYLOAD_IN_MB"


def add(verbs) -> None:
    """Adds the verb."""
    sagemaker = verbs.add_parser(
        "sagemaker",
        help="stand in for SageMaker's Object Detection, in its container or anywhere",
        description="Stand in for SageMaker's Object Detection; docs/sagemaker.md describes it.",
    )
    kinds = sagemaker.add_subparsers(dest="kind", metavar="KIND", required=True)
    train = verb(
        kinds,
        "train",
        _train,
        "train as the files in ROOT/input say, and leave the model in ROOT/model",
        settings=True,
        example="ssd-jax sagemaker train --root /opt/ml",
    )
    serving = verb(
        kinds,
        "serve",
        _serve,
        "answer pictures with boxes from the model in ROOT/model",
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
    # argparse reads a default that is text as it reads the option.
    serving.set_defaults(host="0.0.0.0", workdir=None, step=None, **_from_environment())


class _Variable(str):
    """What an environment variable says, which messages name as they show it."""

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
            f"{model}: there is no such folder, and the model has to lie in it, unpacked. Mount or "
            "copy it there, or give another --root, whose folder model it is."
        )
    if not holds_original(model):
        options.model = model
        serve_detector(options)
        return
    if options.engine not in (None, "auto", "jax"):
        raise UserError(
            f"{model}: it holds an artefact of SageMaker's own algorithm, which the engine jax "
            f"runs, and not {options.engine!r}. For that, convert its model.tar.gz with `ssd-jax "
            "weights import` and `ssd-jax export --onnx` first."
        )
    with imported_original(model) as run:
        options.model, options.workdir = None, str(run)
        serve_detector(options)
