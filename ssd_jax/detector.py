"""A trained detector as a function: images in, boxes out."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from ssd_jax.config import CONFIG_FILE, flat_items, read_config
from ssd_jax.errors import UserError
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.network import Network, build_network, build_predict
from ssd_jax.predict import OnPictures
from ssd_jax.runs.log import CHECKPOINTS_FOLDER
from ssd_jax.sharding import make_mesh, replicated
from ssd_jax.train.checkpoint import Checkpoints
from ssd_jax.types import Detections


class Trained(NamedTuple):
    """A checkpoint of a run, with everything needed to use it."""

    network: Network
    variables: Any
    classes: tuple[str, ...]
    step: int


def load_trained(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    mesh: Mesh | None = None,
    step: str | int | None = None,
) -> Trained:
    """Load the checkpoint `step`: last, best, a number, or None for the config's choice.

    "best" is the best by the metric of the run, even if `config` is evaluated by another metric.
    With `optimizer.ema_decay` = 0 in `config`, the weights of a run with an EMA are those that it
    trained, not their average. The weights are on every device of `mesh`, by default all devices.

    Raises:
      UserError: there is no such checkpoint, or the network or the classes of `config` do not fit.
    """
    mesh, own = mesh or make_mesh(), pathlib.Path(workdir) / CONFIG_FILE
    trained_with = read_config(own) if own.is_file() else config
    with open_checkpoints(trained_with, workdir, read_only=True) as checkpoints:
        chosen = checkpoints.select(config.checkpoint.select if step is None else step)
        classes = checkpoints.classes(chosen)
        if config.data.classes and tuple(config.data.classes) != classes:
            raise UserError(
                f"config.data.classes: got {', '.join(config.data.classes)}, but the run was "
                f"trained on {', '.join(classes)}. Leave it out."
            )
        network = build_network(config, len(classes))
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
            variable_shapes(network.model, config.model.image_size),
        )
        # What `weights import` wrote, step 0, has no average.
        averaged = trained_with.optimizer.ema_decay > 0 and chosen > 0
        of_average = config.optimizer.ema_decay > 0 or not averaged
        try:
            variables = checkpoints.restore_variables(
                chosen, like, classes=classes, of_average=of_average
            )
        except UserError as error:
            changed = _changed_network(config, trained_with)
            raise UserError(f"{error}{changed}") from error
    return Trained(network, variables, classes, chosen)


def _changed_network(config: ConfigDict, trained_with: ConfigDict) -> str:
    """A sentence about the settings of the network that differ; "" if none do."""
    before = dict(flat_items(trained_with))
    changed = [
        f"config.{name} was {before.get(name)!r} and is {value!r}"
        for name, value in flat_items(config)
        if name.startswith("model.") and value != before.get(name)
    ]
    return f" In the run, {'; '.join(changed)}." if changed else ""


def open_checkpoints(
    config: ConfigDict, workdir: str | pathlib.Path, *, read_only: bool = False
) -> Checkpoints:
    """The checkpoints of the run in `workdir`, the best by the config's metric."""
    return Checkpoints(
        pathlib.Path(workdir) / CHECKPOINTS_FOLDER,
        metric=f"map_{config.evaluate.metric}",
        keep_latest=config.checkpoint.keep_latest,
        read_only=read_only,
    )


class Detector(OnPictures):
    """A trained detector: `Detector.load(workdir)(images)` returns the detections in images."""

    engine, why = "jax", "it is a run, not an export"

    def __init__(self, config: ConfigDict, trained: Trained):
        self.classes = trained.classes
        self.step = trained.step
        self.meta = {"step": trained.step}
        self._variables = trained.variables
        self.canvas = config.data.canvas
        self._predict = jax.jit(build_predict(config, trained.network))

    @classmethod
    def load(cls, workdir: str | pathlib.Path, *, step: str | int | None = None) -> "Detector":
        """Load the detector of a training run in `workdir`; `step` is as in `load_trained`."""
        workdir = pathlib.Path(workdir)
        config = read_config(workdir / CONFIG_FILE)
        mesh = make_mesh(jax.local_devices()[:1])
        return cls(config, load_trained(config, workdir, mesh=mesh, step=step))

    def predict(
        self, canvas: UInt8[np.ndarray, "B S S 3"], extent: Int[np.ndarray, "B 2"]
    ) -> Detections:
        """The detections in decoded images, given as in `types.Batch`; S is `self.canvas`."""
        return jax.device_get(self._predict(self._variables, canvas, extent))
