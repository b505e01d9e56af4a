"""`ssd-jax sagemaker train` and `ssd-jax sagemaker serve`."""

import argparse
import os
import pathlib

from ssd_jax.commands import serve
from ssd_jax.commands.common import count, verb
from ssd_jax.errors import UserError


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
    )
    for parser in (train, serving):
        parser.add_argument(
            "--root",
            type=pathlib.Path,
            default=pathlib.Path("/opt/ml"),
            metavar="ROOT",
            help="default: %(default)s",
        )
    serving.add_argument("--port", type=count, default=8080, help="default: %(default)s")


def _train(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.sagemaker.train import run_job

    run_job(options.root, configs.split_assignments(rest))


def _serve(options, rest):
    model = options.root / "model"
    if any(model.glob("*.params")):
        raise UserError(
            f"{model}: it holds an artefact of SageMaker's own algorithm. Convert its model.tar.gz "
            "with `ssd-jax weights import` and `ssd-jax export` first."
        )
    parser = argparse.ArgumentParser()
    serve.add(parser.add_subparsers())
    command = ["serve", "--model", str(model), "--host", "0.0.0.0", "--port", str(options.port)]
    # Of a batch transform: docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
    if megabytes := int(os.environ.get("SAGEMAKER_MAX_PAYLOAD_IN_MB") or 0):
        command += ["--max-megabytes", str(megabytes)]
    serving = parser.parse_args(command)
    return serving.run(serving, [])
