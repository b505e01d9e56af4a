"""`ssd-jax predict`."""

import pathlib

from ssd_jax.commands.common import step, verb, workdir


def add(verbs) -> None:
    """Adds the verb."""
    predict = verb(
        verbs,
        "predict",
        _predict,
        "detect objects in pictures: JSON and drawings",
        example="ssd-jax predict --workdir runs/bccd photo.jpg --out found/",
    )
    workdir(predict, "folder of a run")
    predict.add_argument("images", nargs="+", metavar="IMAGE", type=pathlib.Path)
    predict.add_argument("--out", required=True, metavar="DIR", type=pathlib.Path)
    predict.add_argument(
        "--score",
        type=float,
        default=0.5,
        metavar="S",
        help="lowest score that is drawn (default: %(default)s); the JSON has all detections",
    )
    step(predict)


def _predict(options, rest):
    from ssd_jax.runs import run_prediction

    run_prediction(
        options.workdir, options.images, options.out, step=options.step, score=options.score
    )
