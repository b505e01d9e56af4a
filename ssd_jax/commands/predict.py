"""`ssd-jax predict`."""

import argparse

from ssd_jax.commands.common import (
    check_detector,
    detector_arguments,
    local_path,
    open_detector,
    part_of_one,
    positive,
    verb,
)

FORMATS = """\
Formats:
  json       NAME.json for each image, NAME.jsonl for each video, and drawings
  jsonl      detections.jsonl, one line per image or frame
  coco       detections.json, in the COCO results format
  voc        comp4_det_test_CLASS.txt, in the VOC devkit's results format
  transform  NAME.SUFFIX.out for each image, as a SageMaker batch transform writes it; the same
             command again writes only what is missing; --out may be s3://BUCKET/PREFIX
docs/prediction.md describes them."""


def add(verbs) -> None:
    """Adds the verb."""
    predict = verb(
        verbs,
        "predict",
        _predict,
        "detect objects in images and videos",
        example="ssd-jax predict --workdir runs/bccd photo.jpg video.mp4 --out found/",
        note=FORMATS,
    )
    detector_arguments(predict)
    predict.add_argument(
        "places",
        nargs="+",
        metavar="PLACE",
        help="an image (JPEG, PNG), a video, a folder, a glob, or a URL (https://, s3://, gs://)",
    )
    predict.add_argument("--out", required=True, metavar="DIR")
    predict.add_argument(
        "--format",
        choices=("json", "jsonl", "coco", "voc", "transform"),
        default="json",
        help="default: %(default)s",
    )
    predict.add_argument(
        "--draw",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also draw the boxes: NAME.png, for a video NAME.mp4 (default: with --format json "
        "only)",
    )
    predict.add_argument(
        "--score",
        type=part_of_one,
        default=0.5,
        metavar="S",
        help="lowest score that is drawn (default: %(default)s)",
    )
    predict.add_argument(
        "--min-score",
        type=part_of_one,
        default=0.0,
        metavar="S",
        help="lowest score that is written (default: write all detections, which mAP needs)",
    )
    predict.add_argument(
        "--annotations",
        metavar="FILE",
        type=local_path,
        help="with --format coco: take image and category ids from this COCO file",
    )
    predict.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="default: %(default)s"
    )


def _predict(options, rest):
    from ssd_jax.errors import UserError
    from ssd_jax.predict_files.inputs import check_places
    from ssd_jax.predict_files.run import run_prediction, run_transform

    check_detector(options)
    if options.annotations and options.format != "coco":
        raise UserError("--annotations: only --format coco uses this file. Leave it out.")
    if options.draw and options.format == "transform":
        raise UserError("--draw: --format transform makes no drawings. Leave it out.")
    if options.min_score and options.format == "transform":
        raise UserError("--min-score: --format transform writes all detections. Leave it out.")
    if "://" in options.out and options.format != "transform":
        raise UserError(
            f"--out {options.out}: only --format transform can write to a bucket. Give a folder."
        )
    # Before the detector is opened, which takes long.
    check_places(options.places)
    if options.annotations and not options.annotations.is_file():
        raise UserError(f"--annotations {options.annotations}: no such file. Give a COCO file.")
    detector = open_detector(options)
    if options.model:
        print(f"engine {detector.engine}: {detector.why}")
    if options.format == "transform":
        run_transform(detector, options.places, options.out, batch_size=options.batch_size)
        return
    run_prediction(
        detector,
        options.places,
        options.out,
        format=options.format,
        draw=options.draw,
        score=options.score,
        min_score=options.min_score,
        batch_size=options.batch_size,
        annotations=options.annotations,
    )
