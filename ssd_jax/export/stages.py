"""`predict` in three stages, of which the middle one can run on any engine.

`prepare` (resize) and `finish` (decode, NMS) are our own programs for every engine, so that two
engines differ only in the rounding of the network.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from ssd_jax.models.ssd import SSD
from ssd_jax.network import Network
from ssd_jax.predict import finish, predicting_anchors, prepare, run_network
from ssd_jax.types import Detections

Outputs = tuple[Float[Array, "B A 4"], Float[Array, "B A channels"]]


class Stages(NamedTuple):
    """The stages before and after the network; pure functions, to be jitted.

    `prepare(canvas, extent)` gives RGB pixel values 0 to 255, and `finish(box_deltas,
    probabilities)` detections. `anchors` are those that the box deltas belong to.
    """

    prepare: Callable[[UInt8[Array, "B H W 3"], Int[Array, "B 2"]], Float[Array, "B S S 3"]]
    finish: Callable[..., Detections]
    anchors: Float[np.ndarray, "A 4"]


def network_stage(
    config: ConfigDict, model: SSD
) -> Callable[[Any, Float[Array, "B S S 3"]], Outputs]:
    """`(variables, images)`, RGB pixel values 0 to 255 -> box deltas and class probabilities."""
    mean, std, flip = config.preprocess.mean, config.preprocess.std, config.detect.flip
    return functools.partial(run_network, model, mean=mean, std=std, flip=flip)


def build_stages(config: ConfigDict, anchors: Float[np.ndarray, "A 4"]) -> Stages:
    """The stages of `predict.make_predict`, only at the network's own image size.

    `anchors` are those of `exported_anchors`.
    """
    settings = config.detect.to_dict()
    del settings["image_sizes"], settings["flip"]
    return Stages(
        functools.partial(prepare, size=config.model.image_size),
        functools.partial(finish, anchors=anchors, **settings),
        anchors,
    )


def exported_anchors(config: ConfigDict, network: Network) -> Float[np.ndarray, "A 4"]:
    """The anchors that the outputs of `network_stage` belong to."""
    return predicting_anchors(network.anchors, flip=config.detect.flip)
