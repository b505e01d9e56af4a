"""`ssd-jax doctor`."""

from ssd_jax.commands.common import count, location, names_argument, verb


def add(verbs) -> None:
    """Adds the verb."""
    doctor = verb(
        verbs,
        "doctor",
        _doctor,
        "find the mistakes in a data set before training on it",
        example="ssd-jax doctor data/VOCdevkit --split VOC2007/trainval --out doctor/",
        note="Exit code: 0 without errors, 3 with any. docs/doctor.md explains every code.",
    )
    location(doctor, "location", "SRC")
    doctor.add_argument(
        "--against",
        metavar="SRC2",
        help="a second data set (e.g. validation) that must not share images with SRC",
    )
    names_argument(doctor, "--against-split", "splits of SRC2")
    doctor.add_argument("--out", metavar="DIR", help="write the findings (JSON) and a figure")
    doctor.add_argument("--fix", metavar="DST", help="write a copy without the errors")
    doctor.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="judge by this config's anchors and data.label_width (default: SSD300's anchors)",
    )
    doctor.add_argument(
        "--label-width", type=count, metavar="N", help="RecordIO: the most numbers a label may have"
    )


def _doctor(options, rest):
    from ssd_jax.data.doctor_report import run_doctor

    anchors, label_width = None, options.label_width
    if options.config:
        from ssd_jax.config import load_config
        from ssd_jax.config_check import check
        from ssd_jax.network import build_network

        config = load_config(options.config)
        check(config)
        # The anchors are the same for any number of classes.
        anchors = build_network(config, 1).anchors
        if label_width is None:
            label_width = config.data.label_width
    return run_doctor(
        options.location,
        split=options.split,
        classes=options.classes or None,
        against=options.against,
        against_split=options.against_split,
        fix=options.fix,
        out=options.out,
        anchors=anchors,
        label_width=label_width,
    )
