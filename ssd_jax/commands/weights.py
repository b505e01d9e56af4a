"""`ssd-jax weights import`."""

import sys

from ssd_jax.commands.common import local_path, names_argument, verb


def add(verbs) -> None:
    """Adds the verb."""
    weights = verbs.add_parser(
        "weights", help="import trained weights", description="Import trained weights."
    )
    kinds = weights.add_subparsers(dest="kind", metavar="KIND", required=True)
    importing = verb(
        kinds,
        "import",
        _weights_import,
        "turn a detector trained elsewhere into the folder of a run",
        settings=True,
        example="ssd-jax weights import model.tar.gz --out runs/imported --classes cat,dog",
        note="FILE is a model.tar.gz of SageMaker Object Detection, or a weight file (.params,\n"
        ".safetensors, .h5, hf://owner/repository/file) with the config of its network.",
    )
    importing.add_argument("file", metavar="FILE")
    importing.add_argument("--out", required=True, metavar="DIR", type=local_path)
    importing.add_argument(
        "--config",
        metavar="FILE[:VARIANT]",
        help="config of the network that a weight file belongs to",
    )
    names_argument(importing, "--classes", "class names in the order of their ids")
    importing.add_argument(
        "--reinit-heads",
        action="store_true",
        help="initialise the heads that do not fit, e.g. for other classes",
    )


def _weights_import(options, rest):
    from ssd_jax import config as configs
    from ssd_jax.importing import import_weights

    report = import_weights(
        options.file,
        options.out,
        config=configs.load_config(options.config) if options.config else None,
        classes=tuple(options.classes),
        assignments=configs.split_assignments(rest),
        reinit_heads=options.reinit_heads,
    )
    print(report)
    if report.has_new_heads:
        print(
            "warning: heads of the network are not from the file but new, so it detects nothing "
            "before it is trained. Start a training from it with "
            f"--config.weights.path={options.out}.",
            file=sys.stderr,
        )
    else:
        print(f"next: ssd-jax predict --workdir {options.out} IMAGE... --out found/")
