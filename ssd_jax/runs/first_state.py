"""The state that a training starts with: weights from a file, and layers that the file lacks."""

from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.cluster import fingerprint, from_first, tell, together
from ssd_jax.data.sources.base import Source
from ssd_jax.importing import new_layers, start_from
from ssd_jax.models.initialise import init_variables, scale_kernels, unit_output_factors
from ssd_jax.network import Network, network_warnings
from ssd_jax.runs.training_data import network_inputs
from ssd_jax.train.state import TrainState

# Layers that a weight file lacks are scaled by their outputs on this many images.
IMAGES_TO_SCALE_BY = 8


def first_state(
    config: ConfigDict,
    network: Network,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    source: Source,
) -> tuple[TrainState, dict[str, Any] | None]:
    """The state at step 0, and what report.json says about its initial weights.

    Prints the network, the layers that were loaded, and warnings about the schedule.
    """
    record: dict[str, Any] | None = None
    factors: dict[str, float] = {}
    with together():
        variables = init_variables(network.model, config.model.image_size, seed=config.seed)
        if config.weights.path:
            variables, load_report = start_from(
                variables,
                config.weights.path,
                backbone=config.model.backbone,
                reinitialise=config.weights.reinitialise,
                config=config,
                classes=source.classes,
            )
            tell(load_report)
            record = dict(load_report.facts)
            if new := new_layers(variables, load_report):
                images = network_inputs(config, source, count=IMAGES_TO_SCALE_BY)
                factors = unit_output_factors(network.model, variables, new, images)
    if factors:
        # Each process has measured them, and devices may round differently.
        factors = from_first(factors)
        variables = scale_kernels(variables, factors)
        record |= {"new in the backbone": _tell_factors(config, factors)}
    with together() as facts:
        facts["weights to begin with"] = fingerprint(variables)
    tell(experiment.describe_network(config, network, variables, mesh))
    warnings = network_warnings(config, network)
    for warning in warnings + experiment.schedule_warnings(config, len(source)):
        tell(f"warning: {warning}")
    return experiment.build_state(config, variables, optimizer, mesh), record


def _tell_factors(config: ConfigDict, factors: dict[str, float]) -> str:
    scaled = ", ".join(f"{layer} times {factor:g}" for layer, factor in factors.items())
    tell(f"  new in the backbone: {scaled}, for outputs with an RMS near 1")
    if not (config.optimizer.warmup_steps and config.optimizer.clip_norm):
        tell(
            "  random layers above pretrained ones give large gradients at first, which without "
            "warm-up and clipping may destroy the pretrained weights. Consider "
            "--config.optimizer.warmup_steps=500 --config.optimizer.clip_norm=35"
        )
    return scaled
