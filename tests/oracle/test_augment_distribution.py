"""The augmentation of mxnet-ssd as a distribution: MXNet's draws against as many of ours.

`full` is mirror, expansion and crop, each with its probability; `crop` and `pad` are that part
alone, the crop always. Images are of one colour and were stored as JPEG. The IoU limits bind.
"""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle.reference import vectors

from ssd_jax.ops.augment import Augmentation, apply_parameters, sample_parameters
from ssd_jax.ops.colour import Jitter, jitter, sample_shift
from ssd_jax.ops.crop import Crop, Expand

EXPAND = Expand(minimum=1.05)
CROP = Crop((0.1, 0.3, 0.5, 0.7, 0.9), trials=25, choice="first")
NOTHING = Augmentation(distort=None, expand=None, crop=None, flip=0.0, exact_boxes=False)
SETTINGS = {
    "full": NOTHING._replace(expand=EXPAND, crop=CROP._replace(probability=5 / 6), flip=0.5),
    "crop": NOTHING._replace(crop=CROP),
    "pad": NOTHING._replace(expand=EXPAND),
}


def kolmogorov_smirnov(one, two):
    """The asymptotic p-value that two samples, rounded to 1e-4, are of one distribution."""
    one, two = (np.sort(np.round(np.asarray(sample, np.float64), 4)) for sample in (one, two))
    both = np.concatenate([one, two])
    shares = (np.searchsorted(sample, both, side="right") / len(sample) for sample in (one, two))
    distance = np.abs(np.subtract(*shares)).max()
    scaled = distance * np.sqrt(len(one) * len(two) / len(both))
    terms = np.arange(1, 101)
    series = 2 * np.sum((-1.0) ** (terms - 1) * np.exp(-2 * (terms * scaled) ** 2))
    return 1.0 if scaled < 0.2 else series


def draws(name, width_and_height, objects, count):
    """Boxes and validity of the objects in `count` augmented images."""
    extent = jnp.array(width_and_height[::-1])
    canvas = jnp.zeros((2, 2, 3))
    boxes, valid = jnp.array(objects[:, 1:5]), jnp.ones(len(objects), bool)
    settings = SETTINGS[name]

    def one(key):
        parameters = sample_parameters(key, extent, boxes, valid, settings=settings)
        return apply_parameters(
            parameters, canvas, extent, boxes, valid, size=1, settings=settings, fill=(0, 0, 0)
        )[1:]

    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count))
    )


@functools.cache
def load(path):
    with np.load(path) as vector:
        return dict(vector)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("path", vectors("augment_distribution"))
def test_boxes_are_distributed_as_the_reference_s(path, name):
    vector = load(path)
    theirs = vector[f"{name}_one"]
    ours, valid = draws(name, vector["wh"], vector["one"], len(theirs))
    assert valid.all()
    for coordinate in range(4):
        p = kolmogorov_smirnov(ours[:, 0, coordinate], theirs[:, coordinate])
        assert p > 0.001, ["xmin", "ymin", "xmax", "ymax"][coordinate]


@pytest.mark.parametrize("path", vectors("augment_distribution"))
def test_as_many_objects_are_kept_and_the_same(path):
    vector = load(path)
    theirs = vector["full_many_ids"]
    _, kept = draws("full", vector["wh"], vector["many"], len(theirs))
    assert kolmogorov_smirnov(kept.sum(axis=1), (theirs >= 0).sum(axis=1)) > 0.001
    for place, identity in enumerate(vector["many"][:, 0]):
        share, expected = kept[:, place].mean(), (theirs == identity).any(axis=1).mean()
        # Four standard deviations of the difference of two shares.
        assert share == pytest.approx(expected, abs=4 * np.sqrt(0.5 / len(theirs)))


@pytest.mark.parametrize("path", vectors("augment_distribution"))
def test_colours_are_distributed_as_the_reference_s(path):
    vector = load(path)
    names = [key.removesuffix("_in_rgb") for key in vector if key.endswith("_in_rgb")]
    assert names
    for name in names:
        theirs = vector[f"{name}_out_rgb"]
        flat = np.full((16, 16, 3), vector[f"{name}_in_rgb"][::-1], np.uint8)
        stored = cv2.imdecode(cv2.imencode(".jpg", flat)[1], cv2.IMREAD_COLOR)[8:9, 8:9, ::-1]
        picture = jnp.array(stored, jnp.float32)
        uniform = jax.random.uniform(jax.random.key(1), (len(theirs), 8))
        one = jax.jit(jax.vmap(lambda u, p=picture: jitter(p, sample_shift(u, Jitter()))))
        ours = np.asarray(one(uniform))[:, 0, 0]
        for channel in range(3):
            p = kolmogorov_smirnov(ours[:, channel], theirs[:, channel])
            assert p > 0.001, (name, "rgb"[channel])
