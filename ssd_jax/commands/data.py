"""`ssd-jax data shapes` and `ssd-jax data prepare`."""

import argparse
import pathlib

from ssd_jax.commands.common import count, local_path, positive, verb
from ssd_jax.errors import UserError, counted

# Of synthetic images: with fewer pixels the shapes cannot be recognised.
SMALLEST_SIDE = 32


def add(verbs) -> None:
    """Adds the verb."""
    data = verbs.add_parser("data", help="make data sets", description="Make data sets.")
    kinds = data.add_subparsers(dest="kind", metavar="KIND", required=True)
    shapes = verb(
        kinds,
        "shapes",
        _data_shapes,
        "generate shapes on textured backgrounds, as a VOC folder",
        example="ssd-jax data shapes shapes/ --train 3000 --val 300",
    )
    shapes.add_argument("folder", type=local_path)
    shapes.add_argument(
        "--train", type=count, default=3000, metavar="N", help="images (%(default)s)"
    )
    shapes.add_argument("--val", type=count, default=300, metavar="N", help="images (%(default)s)")
    shapes.add_argument("--seed", type=count, default=0, help="(%(default)s)")
    shapes.add_argument(
        "--image-size", type=_side, default=192, metavar="N", help="pixels (%(default)s)"
    )
    prepare = kinds.add_parser(
        "prepare", help="prepare a published data set", description="Prepare a data set."
    ).add_subparsers(dest="name", metavar="NAME", required=True)
    voc = verb(
        prepare,
        "voc",
        _data_prepare_voc,
        "PASCAL VOC 2007 and 2012 from the official archives, in the format of TFDS",
        example="ssd-jax data prepare voc --out data/tfds",
        note="Then train on it with --config.data.train.root='DIR/voc/2007 + DIR/voc/2012'\n"
        "and --config.data.train.image_sets=train,validation.",
    )
    voc.add_argument("--out", required=True, metavar="DIR")
    voc.add_argument(
        "--archives",
        metavar="DIR",
        help="folder with the tar files (default: download them)",
    )
    voc.add_argument("--years", nargs="+", default=("2007", "2012"), choices=("2007", "2012"))


def _side(text: str) -> int:
    side = positive(text)
    if side < SMALLEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is below {SMALLEST_SIDE} pixels")
    return side


def _data_shapes(options, rest):
    from ssd_jax.data.shapes import write_shapes

    _refuse_another_set(options.folder, train=options.train, val=options.val)
    write_shapes(
        options.folder,
        train=options.train,
        val=options.val,
        seed=options.seed,
        image_size=options.image_size,
    )
    print(f"{options.folder}: {options.train} training and {options.val} validation images")


def _refuse_another_set(folder: pathlib.Path, *, train: int, val: int) -> None:
    """Refuses a folder with other images: what remained of a larger set would mix with these."""
    names = {f"{index:06d}" for index in range(train + val)}
    names |= {split for split, count in (("train", train), ("val", val)) if count}
    there = [*folder.glob("Annotations/*.xml"), *folder.glob("ImageSets/Main/*.txt")]
    if others := [path for path in there if path.stem not in names]:
        raise UserError(
            f"{folder} contains another data set ({min(others)}): give an empty folder, or remove "
            "this one"
        )


def _data_prepare_voc(options, rest):
    from ssd_jax.data.prepare import prepare_voc

    counts = prepare_voc(options.out, archives=options.archives, years=options.years)
    for name, splits in counts.items():
        images = ", ".join(f"{split} {counted(count, 'image')}" for split, count in splits.items())
        print(f"{options.out}/{name}: {images}")
