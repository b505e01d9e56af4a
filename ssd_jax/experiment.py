"""Where a config becomes the parts of a training; `network.py` has those of a prediction."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax.caches import cache_folder
from ssd_jax.config_check import LARGEST_NUMBER, images_together
from ssd_jax.data import codes
from ssd_jax.data.doctor import check_before_training
from ssd_jax.data.open import open_data, split_of_role
from ssd_jax.data.sources.base import Problems, Source, check_not_empty
from ssd_jax.errors import DataError, UserError
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.network import Network, anchors_at
from ssd_jax.ops.augment import Augmentation
from ssd_jax.ops.colour import Distort, Jitter
from ssd_jax.ops.crop import Crop, Expand
from ssd_jax.ops.mosaic import Mosaic
from ssd_jax.runs.describe_data import doctor_command
from ssd_jax.sharding import BATCH_AXIS
from ssd_jax.train import optimizer as optimizers
from ssd_jax.train.hooks import Augment, Loss
from ssd_jax.train.state import TrainState, create_state, state_shapes
from ssd_jax.train.step import augment_batch, batch_loss, train_step
from ssd_jax.train.stopping import EarlyStopping

# Of a run: epochs 160 and 200 of 240, those of GluonCV's recipe of the paper.
_DECAY_PARTS = 2 / 3, 5 / 6
# A part of a run that hardly any recipe exceeds.
_LONGEST_WARMUP = 0.2
# With SGD and momentum, a rate divided by its batch: 0.001 of 32 images, the paper's. The published
# ones are up to twice as high.
_USUAL_RATE, _HIGHEST_RATE = 1e-3 / 32, 5e-3 / 32


def build_source(config: ConfigDict, split: str, *, classes: tuple[str, ...] = ()) -> Source:
    """The data of "train", "val" or "test", as the doctor left it; `classes` fixes the ids."""
    place = config.data[split]
    if not place.root.strip():
        raise UserError(
            f"config.data.{split}.root: it is empty, so there is nothing to read. Give a data set, "
            f"--config.data.{split}.root=DIR; docs/data.md has the formats."
        )
    classes = classes or config.data.classes
    command = doctor_command(config, split, classes)
    try:
        source = open_data(
            place.root,
            split=split_of_role(place.root, place.image_sets, split),
            classes=classes or None,
            problems=Problems(
                config.data.problems,
                advice=f"`{command}` shows all that cannot be used, and "
                "--config.data.problems=skip leaves it out",
            ),
            label_width=config.data.label_width,
        )
    except DataError as error:
        # A file of the set may also name a folder that does not exist.
        if error.code != codes.FOLDER_MISSING or error.where not in place.root:
            raise
        fix = f"{error.fix}. The path is --config.data.{split}.root"
        raise DataError(error.code, error.where, error.problem, fix) from None
    return examined(config, split, source)


def examined(config: ConfigDict, split: str, source: Source) -> Source:
    """What the doctor leaves of a split, with what it found; all of it, if it is not asked."""
    if not config.data.doctor:
        return source
    usable, diagnosis = check_before_training(source, cache_folder())
    if len(usable) < len(source):
        place = f"config.data.{split}.root = {root}" if (root := config.data[split].root) else split
        source = check_not_empty(source.take(usable), place)
    source.findings = diagnosis.counts
    source.digests = tuple(diagnosis.digests[image] for image in usable)
    return source


def training_sizes(config: ConfigDict) -> tuple[int, ...]:
    """The image sizes that steps are trained at."""
    return config.augment.image_sizes or (config.model.image_size,)


def total_steps(config: ConfigDict, images: int) -> int:
    """The length of the run; an epoch is `images / batch_size` steps, which need not be whole."""
    if config.steps is not None:
        return config.steps
    return max(1, steps_of(config.epochs, images, config.batch_size))


def steps_of(epochs: float, images: int, batch_size: int) -> int:
    """Epochs in steps, rounded; at most as many as a counter holds."""
    return min(round(epochs * images / batch_size), LARGEST_NUMBER)


def evaluate_every(config: ConfigDict, images: int) -> int | float | None:
    """Steps between evaluations, at least 1, not always whole; None for only at the end."""
    if config.evaluate.every_epochs is not None:
        return max(1.0, config.evaluate.every_epochs * images / config.batch_size)
    return config.evaluate.every_steps


def build_early_stopping(config: ConfigDict, images: int) -> EarlyStopping | None:
    """The rule that may end the run early, None without one."""
    settings = config.early_stopping
    if not settings.enabled:
        return None
    return EarlyStopping(
        metric=f"map_{config.evaluate.metric}",
        patience=settings.patience,
        tolerance=settings.tolerance,
        minimum_step=steps_of(settings.minimum_epochs, images, config.batch_size)
        if settings.minimum_steps is None
        else settings.minimum_steps,
    )


def build_schedule(config: ConfigDict, images: int) -> optax.Schedule:
    """Learning rate as a function of the step."""
    settings = config.optimizer
    if settings.schedule == "one_cycle":
        return optimizers.one_cycle_schedule(
            settings.learning_rate, total_steps=total_steps(config, images)
        )
    if settings.schedule == "cosine":
        return optimizers.cosine_schedule(
            settings.learning_rate,
            total_steps=total_steps(config, images),
            warmup_steps=settings.warmup_steps,
        )
    return optimizers.step_schedule(
        settings.learning_rate,
        decay_steps=_decay_steps(config, images),
        decay_factor=settings.decay_factor,
        warmup_steps=settings.warmup_steps,
    )


def _decay_steps(config: ConfigDict, images: int) -> list[int]:
    settings = config.optimizer
    if settings.decay_epochs is None:
        return [round(part * total_steps(config, images)) for part in _DECAY_PARTS]
    epoch = settings.steps_per_epoch or images / config.batch_size
    return [min(round(epochs * epoch), LARGEST_NUMBER) for epochs in settings.decay_epochs]


def schedule_warnings(config: ConfigDict, images: int) -> list[str]:
    """What is likely to be a mistake.

    A rate that never falls, is hardly reached, or too high; a batch of more images than there are.
    """
    settings, total = config.optimizer, total_steps(config, images)
    warnings = []
    behind = [step for step in _decay_steps(config, images) if step >= total]
    if settings.schedule == "step" and settings.decay_epochs and behind:
        warnings.append(
            f"the learning rate would fall at step {behind[0]}, and the run ends at step {total}: "
            f"config.optimizer.decay_epochs = {settings.decay_epochs} are those of a longer run. "
            "Leave them out (None) to have it fall after 2/3 and 5/6 of the run"
        )
    if settings.schedule != "one_cycle" and settings.warmup_steps > _LONGEST_WARMUP * total:
        warnings.append(
            f"the learning rate is warmed up in {settings.warmup_steps} of the {total} steps: "
            f"consider --config.optimizer.warmup_steps={max(1, round(total * _LONGEST_WARMUP / 2))}"
        )
    if settings.name == "sgd" and settings.learning_rate > _HIGHEST_RATE * config.batch_size:
        usual = _USUAL_RATE * config.batch_size
        warnings.append(
            f"the learning rate {settings.learning_rate:g} is high for batches of "
            f"{config.batch_size}: rates go with the batch, and the published ones are 0.001 to "
            f"0.002 for 32 images. Consider --config.optimizer.learning_rate={usual:.2g}"
        )
    if config.batch_size > images:
        fewer = 1 << (images.bit_length() - 1)
        groups = (config.model.batch_norm_group, config.loss.group, images_together(config))
        fits = not any(group and fewer % group for group in groups)
        warnings.append(
            f"a batch of {config.batch_size} has some of the {images} images more than once, and "
            f"augments each alike: {f'--config.batch_size={fewer}' if fits else 'a smaller one'} "
            "learns as much of fewer"
        )
    return warnings


def stand_in_schedule(config: ConfigDict) -> optax.Schedule:
    """A schedule for a step that is measured: of more images than any warm-up takes."""
    return build_schedule(config, images=10**7)


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that the config names."""
    names = (
        "name",
        "momentum",
        "learning_rate_in_momentum",
        "weight_decay",
        "rate_multipliers",
        "decay_multipliers",
        "clip_norm",
        "gradient_scale",
    )
    return optimizers.build_optimizer(schedule, **{name: config.optimizer[name] for name in names})


def build_state(
    config: ConfigDict, variables: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state before the first step, from host variables."""
    return create_state(variables, optimizer, mesh, **_state_settings(config))


def build_state_shapes(
    config: ConfigDict, network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state of a training as `jax.ShapeDtypeStruct`s that know where they will lie."""
    return state_shapes(
        variable_shapes(network.model, config.model.image_size),
        optimizer,
        mesh,
        **_state_settings(config),
    )


def _state_settings(config: ConfigDict) -> dict[str, Any]:
    return {"sharding": config.sharding, "averaged": config.optimizer.ema_decay > 0}


def build_step(
    config: ConfigDict,
    network: Network,
    schedule: optax.Schedule,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    images: int | None = None,
    image_size: int | None = None,
    augment: Augment | None = None,
    loss: Loss | None = None,
) -> Callable:
    """`step(state, batch)` at an image size, None for the network's own; not yet jitted.

    `images` is as in `build_augment`. `augment` and `loss` take the place of those of the config,
    as `train_step` says.
    """
    image_size = image_size or config.model.image_size
    return functools.partial(
        train_step,
        mesh=mesh,
        sharding=config.sharding,
        model=network.model,
        optimizer=optimizer,
        schedule=schedule,
        augment=augment or build_augment(config, images, image_size=image_size),
        loss=loss or build_loss(config, network, image_size=image_size),
        mean=config.preprocess.mean,
        std=config.preprocess.std,
        seed=config.seed,
        image_size=image_size,
        rate_multipliers=config.optimizer.rate_multipliers,
        ema_decay=config.optimizer.ema_decay,
    )


def build_steps(
    config: ConfigDict,
    network: Network,
    schedule: optax.Schedule,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    images: int | None = None,
    **hooks: Augment | Loss | None,
) -> dict[int, Callable]:
    """The step at each of the image sizes that the config trains at; the rest as in `build_step`.

    Raises:
      UserError: a hook, which is made for one image size, is to be used at several.
    """
    sizes = training_sizes(config)
    if any(hooks.values()) and len(sizes) > 1:
        raise UserError(
            f"config.augment.image_sizes: got {sizes}, expected one size at most together with "
            "an own loss or augmentation. Leave them empty."
        )
    return {
        size: build_step(
            config, network, schedule, optimizer, mesh, images=images, image_size=size, **hooks
        )
        for size in sizes
    }


def build_augment(
    config: ConfigDict, images: int | None = None, *, image_size: int | None = None
) -> Augment:
    """The augmentation of the config, at an image size, None for the network's own.

    The number of `images` in the training split says how long the run is, and so when its mosaics
    end; None, for a step that is measured: they never do.
    """
    settings = augmentation_settings(config, image_size or config.model.image_size)
    if settings["mosaics"] and config.augment.mosaic.until < 1 and images is not None:
        steps = config.augment.mosaic.until * total_steps(config, images)
        settings["mosaic_steps"] = round(steps)
    return functools.partial(augment_batch, **settings)


def build_loss(config: ConfigDict, network: Network, *, image_size: int | None = None) -> Loss:
    """The loss of the config, for the network's anchors at an image size, None for its own."""
    return functools.partial(
        batch_loss,
        anchors=anchors_at(config, network, image_size or config.model.image_size),
        batch_axis=BATCH_AXIS,
        **loss_settings(config),
    )


def augmentation_settings(config: ConfigDict, image_size: int) -> dict[str, Any]:
    """The keywords of `train.step.augment_batch`; what can never happen is left out."""
    settings = config.augment.to_dict()
    del settings["image_sizes"]
    fill = settings["expand"].pop("fill") or config.preprocess.mean
    parts = {
        "distort": Distort(**settings.pop("distort")),
        "jitter": Jitter(**settings.pop("jitter")),
        "expand": Expand(**settings.pop("expand")),
        "crop": Crop(**settings.pop("crop")),
    }
    del settings["mosaic"]["until"]
    mosaics = Mosaic(**settings.pop("mosaic"))
    never = [name for name, part in parts.items() if not part.probability]
    if not parts["crop"].min_ious:
        never.append("crop")
    return {
        "seed": config.seed,
        "image_size": image_size,
        "settings": Augmentation(**settings, **parts | dict.fromkeys(never)),
        "fill": fill,
        "mosaics": mosaics if mosaics.probability else None,
    }


def loss_settings(config: ConfigDict) -> dict[str, Any]:
    """The keywords of `train.step.batch_loss`."""
    return {**config.match, **config.loss}


def describe_network(config: ConfigDict, network: Network, variables: Any, mesh: Mesh) -> str:
    """A line for the log; `variables` may be their shapes."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return (
        f"network: {config.model.backbone}, {config.model.image_size} px, {parameters:,} "
        f"parameters, {len(network.anchors):,} anchors; {mesh.size} x "
        f"{mesh.devices.flat[0].device_kind}"
    )
