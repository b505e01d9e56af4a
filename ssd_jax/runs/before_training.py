"""Checks before a run or a dry run begins, so that a mistake costs no training."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import experiment
from ssd_jax.cluster import tell, together
from ssd_jax.data.sources.base import Source
from ssd_jax.errors import UserError
from ssd_jax.importing import check_weights
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.network import anchors_at, build_network, build_predict
from ssd_jax.recipes import recipe_config
from ssd_jax.runs.training_data import describe_cache
from ssd_jax.train.optimizer import multipliers

SPLITS = ("train", "val", "test")


def check_without_data(
    config: ConfigDict, *, reads_weights: bool = True, given: Collection[str] = ()
) -> None:
    """Finds the mistakes that would otherwise show only after all images have been read.

    The splits in `given` need no path in the config.
    """
    network = build_network(config, 1)  # the anchors are the same for any number of classes
    build_predict(config, network)
    for size in experiment.training_sizes(config):
        anchors_at(config, network, size)
    of_recipe = recipe_config(config.recipe, config.model.backbone).optimizer
    for name in ("rate_multipliers", "decay_multipliers"):
        rules = config.optimizer[name]
        if rules != of_recipe[name]:  # whose patterns match
            params = variable_shapes(network.model, config.model.image_size)["params"]
            multipliers(params, rules, setting=f"config.optimizer.{name}")
    # Process 0 alone, because the run to resume may appear later on another one's disk.
    if jax.process_index() == 0 and config.weights.path and reads_weights:
        check_weights(config.weights.path)
    for split in ("train", "val"):
        if not config.data[split].root.strip() and split not in given:
            experiment.build_source(config, split)  # raises, and says what is missing


def without_places(config: ConfigDict, given: Collection[str]) -> ConfigDict:
    """The config without the paths of the splits in `given`, which do not come from it."""
    config = config.copy_and_resolve_references()
    for split in given:
        if split not in SPLITS:
            raise UserError(
                f"sources: got the split {split!r}, expected {', '.join(SPLITS[:-1])} or "
                f"{SPLITS[-1]}. Use one of these names."
            )
        config.data[split].update({"root": "", "image_sets": ()})
    return config


def open_sources(
    config: ConfigDict, given: Mapping[str, Source] = MappingProxyType({})
) -> dict[str, Source]:
    """The splits by name; those in `given` as they are, except for what the doctor leaves out.

    A mistake in any of them is found now and costs no training.
    """

    def source_of(split: str, classes: tuple[str, ...]) -> Source:
        if split not in given:
            return experiment.build_source(config, split, classes=classes)
        source = experiment.examined(config, split, given[split])
        if classes and source.classes != classes:
            raise UserError(
                f"sources[{split!r}]: got the classes {', '.join(source.classes)}, expected "
                f"{', '.join(classes)}, those of the config or of the train split. Give it the "
                "same classes in the same order."
            )
        return source

    source = source_of("train", config.data.classes)
    validation = source_of("val", source.classes)
    decides = config.checkpoint.select == "best" or config.early_stopping.enabled
    if decides and validation.annotations.difficult.all():
        have = "every object is difficult" if validation.object_counts.any() else "no objects"
        raise UserError(
            f"config.checkpoint.select: got {config.checkpoint.select!r}, and early_stopping."
            f"enabled: {config.early_stopping.enabled}, but the val split gives no metric: {have}. "
            "Give another val split, or select 'last' without early stopping."
        )
    sources = {"train": source, "val": validation}
    if config.data.test.root or "test" in given:
        sources["test"] = source_of("test", source.classes)
    return sources


def check_cache(config: ConfigDict, source: Source, mesh: Mesh) -> None:
    """Refuses a cache that does not fit; prints how large it is."""
    if config.data.cache != "none":
        with together():
            description = describe_cache(config, source, mesh)
        tell(description)
