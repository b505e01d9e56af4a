"""A row of the table in miniature: few images, few epochs, a narrow network."""

import os
import pathlib
import shutil
from xml.etree import ElementTree

import numpy as np
from ml_collections import ConfigDict

from ssd_jax.config import VOC_CLASSES
from ssd_jax.data.shapes import write_shapes

# Images of the official sets.
VOC_IMAGES = {
    ("VOC2007", "trainval"): 5_011,
    ("VOC2007", "test"): 4_952,
    ("VOC2012", "trainval"): 11_540,
}
FEWEST_IMAGES = 8
CANVAS = 96
SIZES = 7  # of shapes: with three shapes they give 21 names, one more than VOC has classes


def shrink(config: ConfigDict, scale: float) -> None:
    """Reduces the config in place; batch, learning rate and algorithm stay, fewer boxes are kept.

    Images, epochs and the cost of the network per image are multiplied by `scale`, and the image
    size is the smallest possible. The network is trained from scratch, because no published weights
    fit it.
    """
    settings = config.optimizer
    config.epochs *= scale
    if settings.decay_epochs:
        settings.decay_epochs = tuple(epochs * scale for epochs in settings.decay_epochs)
    # A part of the steps, of which there are `scale` times as few images and epochs.
    settings.warmup_steps = round(settings.warmup_steps * scale**2)
    config.evaluate.every_epochs = config.epochs / 3
    config.model.update({"width": scale**0.5, "image_size": 64, "dtype": "float32"})
    config.augment.image_sizes = config.detect.image_sizes = ()
    config.weights.path = ""
    config.data.update({"canvas": CANVAS, "threads": 2})
    config.data.train.image_sets = ("VOC2007/trainval", "VOC2012/trainval")
    config.data.val.image_sets = ("VOC2007/test",)
    # Otherwise NMS would compare several thousand weak boxes with each other.
    config.detect.update({"candidates": 50, "max_detections": 50})
    config.log_every_steps = 1


def make_devkit(config: ConfigDict, folder: pathlib.Path, scale: float) -> pathlib.Path:
    """A folder with evenly chosen images of VOC, if the config has it; else with synthetic ones."""
    if folder.is_dir():
        return folder
    # Several tasks may do this at the same time, so the folder must appear at once and complete.
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    official = pathlib.Path(config.data.train.root)
    try:
        for (year, name), images in VOC_IMAGES.items():
            wanted = max(FEWEST_IMAGES, round(images * scale))
            if (official / year).is_dir():
                _take(official / year, unfinished / year, name, wanted)
            else:
                _draw(unfinished / year, name, wanted)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _take(official: pathlib.Path, folder: pathlib.Path, name: str, wanted: int) -> None:
    sets = pathlib.Path("ImageSets", "Main")
    (folder / sets).mkdir(parents=True, exist_ok=True)
    for part in ("Annotations", "JPEGImages"):
        if not (folder / part).exists():
            (folder / part).symlink_to((official / part).resolve())
    ids = (official / sets / f"{name}.txt").read_text(encoding="utf-8").split()
    chosen = np.linspace(0, len(ids) - 1, min(wanted, len(ids))).round().astype(int)
    lines = "".join(f"{ids[index]}\n" for index in chosen)
    (folder / sets / f"{name}.txt").write_text(lines, encoding="utf-8")


def _draw(folder: pathlib.Path, name: str, wanted: int) -> None:
    drawn = folder / "drawn"
    write_shapes(drawn, train=wanted, val=0, seed=_seed(folder, name), image_size=CANVAS)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    ids = (drawn / "ImageSets" / "Main" / "train.txt").read_text(encoding="utf-8").split()
    for each in ids:
        image = drawn / "JPEGImages" / f"{each}.jpg"
        image.rename(folder / "JPEGImages" / f"{name}_{each}.jpg")
        annotation = _with_names_of_voc(drawn / "Annotations" / f"{each}.xml")
        annotation.write(folder / "Annotations" / f"{name}_{each}.xml")
    lines = "".join(f"{name}_{each}\n" for each in ids)
    (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(lines, encoding="utf-8")
    shutil.rmtree(drawn)


def _seed(folder: pathlib.Path, name: str) -> int:
    return list(VOC_IMAGES).index((folder.name, name))


def _with_names_of_voc(path: pathlib.Path) -> ElementTree.ElementTree:
    """The annotation with a VOC class for each shape and size, so that they can be learned."""
    annotation = ElementTree.parse(path)
    shorter = min(int(annotation.findtext(f"size/{side}")) for side in ("width", "height"))
    shapes = ("cross", "ring", "triangle")
    for thing in annotation.iter("object"):
        xmin, ymin, xmax, ymax = (int(corner.text) for corner in thing.find("bndbox"))
        size = min(SIZES - 1, SIZES * max(xmax - xmin, ymax - ymin) // shorter)
        name = thing.find("name")
        name.text = VOC_CLASSES[(shapes.index(name.text) * SIZES + size) % len(VOC_CLASSES)]
    return annotation
