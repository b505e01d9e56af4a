"""`ssd-jax convert`."""

from ssd_jax.commands.common import location, verb


def add(verbs) -> None:
    """Adds the verb."""
    convert = verb(
        verbs,
        "convert",
        _convert,
        "convert a data set to another format; images are copied unchanged",
        example="ssd-jax convert data/VOCdevkit train.rec --split VOC2007/trainval",
    )
    location(convert, "location", "SRC")
    convert.add_argument("destination", metavar="DST")
    convert.add_argument(
        "--format",
        metavar="FORMAT",
        help="voc, json, manifest, coco, recordio, tfds (default: by the suffix of DST, else voc)",
    )
    convert.add_argument(
        "--name", help="name of the split that is written (default: the one that is read)"
    )
    convert.add_argument(
        "--skip-problems",
        action="store_true",
        help="leave out records and boxes with errors, instead of stopping",
    )


def _convert(options, rest):
    from ssd_jax.data.convert import run_convert

    done = run_convert(
        options.location,
        options.destination,
        split=options.split,
        format=options.format,
        name=options.name,
        classes=options.classes or None,
        problems="skip" if options.skip_problems else "error",
    )
    print(done)
