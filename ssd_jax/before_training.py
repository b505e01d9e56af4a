"""What is found and told before a run or its plan begins, so that a mistake costs no training."""

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.cluster import together
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.importing import check_weights
from ssd_jax.network import anchors_at, build_network, build_predict
from ssd_jax.training_data import describe_cache


def check_without_data(config: ConfigDict, *, reads_weights: bool = True) -> None:
    """Finds now what else would be found when all pictures have been looked at."""
    network = build_network(config, 1)  # the anchors are the same for any number of classes
    build_predict(config, network)
    for size in experiment.training_sizes(config):
        anchors_at(config, network, size)
    # Process 0 alone, because the disk of another one may be late to show the run to go on with.
    if jax.process_index() == 0 and config.weights.path and reads_weights:
        check_weights(config.weights.path)
    for split in ("train", "val"):
        if not config.data[split].root.strip():
            experiment.build_source(config, split)  # which says what is missing


def open_sources(config: ConfigDict) -> dict[str, Source]:
    """The splits by name; a mistake in any of them is found now and costs no training."""
    source = experiment.build_source(config, "train")
    validation = experiment.build_source(config, "val", classes=source.classes)
    decides = config.checkpoint.select == "best" or config.early_stopping.enabled
    if decides and not validation.object_counts.any():
        raise UserError(
            f"config.checkpoint.select: got {config.checkpoint.select!r}, and early_stopping."
            f"enabled: {config.early_stopping.enabled}, but the val split has no object to measure "
            "by. Give another val split, or select 'last' without early stopping."
        )
    sources = {"train": source, "val": validation}
    if config.data.test.root:
        sources["test"] = experiment.build_source(config, "test", classes=source.classes)
    return sources


def check_cache(config: ConfigDict, source: Source, mesh: Mesh) -> None:
    """Refuses a cache that the devices do not hold."""
    if config.data.cache != "none":
        with together():
            told = describe_cache(config, source, mesh)
        tell(told)


def tell(text: object) -> None:
    """Prints on one process of all."""
    if jax.process_index() == 0:
        print(text, flush=True)
