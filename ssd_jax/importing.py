"""Imports weights from other frameworks into the folder of a run, or from one run into another."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ssd_jax import config as configs
from ssd_jax.config import CONFIG_FILE
from ssd_jax.config_check import check
from ssd_jax.data.storage import is_remote, stage
from ssd_jax.detector import load_trained, open_checkpoints
from ssd_jax.errors import UserError
from ssd_jax.export.folder import META, read_folder
from ssd_jax.models.initialise import init_variables, variable_shapes
from ssd_jax.models.ssd import map_shapes
from ssd_jax.network import Network, build_network
from ssd_jax.ops.anchors import default_boxes
from ssd_jax.recipes import recipe_config
from ssd_jax.sharding import make_mesh
from ssd_jax.train.state import create_state
from ssd_jax.weights.archive import is_archive, read_archive
from ssd_jax.weights.artefact import Artefact, read_artefact
from ssd_jax.weights.load import HEADS, LoadReport, load_weights
from ssd_jax.weights.maps import Input, NameMap, Target, unchanged
from ssd_jax.weights.readers import WeightFile

REPORT_FILE = "import.txt"
# MXNet prints anchor sizes with six digits, which cannot move an anchor further than this.
_SAME_ANCHOR = 1e-5


def import_weights(
    source: str,
    workdir: pathlib.Path,
    *,
    config: ConfigDict | None = None,
    classes: Sequence[str] = (),
    assignments: Sequence[tuple[str, str]] = (),
    reinit_heads: bool = False,
) -> LoadReport:
    """Make the folder of a run, at step 0, from a trained detector.

    `source` is a model.tar.gz of SageMaker Object Detection, which describes its own network, or
    any file that `read_weights` knows, for the network of `config`. `assignments` change the
    settings, as in `config.override`. `classes` are the names, which an artefact does not hold;
    default: class_0, class_1, ... With `reinit_heads`, heads for another number of classes are
    initialised again. The report is also written into the folder.
    """
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"{workdir}: the folder is not empty. Give a new folder.")
    source = _local(source)
    if is_archive(source):
        if config is not None:
            raise UserError(
                f"{source}: an artefact describes its own network. Leave out the config."
            )
        artefact = read_artefact(source)
        config = recipe_config("sagemaker", artefact.settings["model.backbone"])
        config.update_from_flattened_dict(artefact.settings)
        config.data.canvas = max(config.data.canvas, config.model.image_size)
        weights = artefact.weights
    elif config is not None:
        artefact, weights = None, source
    else:
        raise UserError(
            f"{source}: the file does not say which network it is for. Give its config with "
            "--config FILE."
        )
    configs.override(config, assignments)
    config.data.classes = _class_names(config, classes, artefact, reinit_heads)
    check(config)
    network = build_network(config, len(config.data.classes))
    if artefact:
        _check_anchors(source, artefact, network, config)
    variables, report = load_weights(
        variable_shapes(network.model, config.model.image_size),
        weights,
        backbone=config.model.backbone,
        reinitialise=HEADS if reinit_heads else (),
        network_sees=_input_of(config),
    )
    if report.kept or report.reinitialised:
        first = init_variables(network.model, config.model.image_size, seed=config.seed)
        variables = jax.tree.map(
            lambda loaded, new: new if isinstance(loaded, jax.ShapeDtypeStruct) else loaded,
            variables,
            first,
        )
    _write_run(config, variables, report, workdir)
    return report


def start_from(
    variables: dict,
    source: str,
    *,
    backbone: str | None = None,
    reinitialise: Sequence[str] = (),
    config: ConfigDict | None = None,
    classes: Sequence[str] = (),
) -> tuple[dict, LoadReport]:
    """Load initial variables for training; returns them with a report.

    `source` is the folder of a run (the checkpoint that its config selects is used), an exported
    detector, a model.tar.gz of SageMaker, a URL of one of these, or anything that `load_weights`
    takes; the other arguments are those of `load_weights` too. With `config`, a detector must have
    the same input and anchors, because otherwise its weights do not fit; with `classes`, it must
    not have these in another order.
    """
    source = _local(source)
    folder = pathlib.Path(source)
    file, own, theirs = source, None, None
    if _is_exported(source):
        file, own, theirs = _read_exported(source, config, classes)
    elif folder.is_dir():
        file, own, theirs = _read_run(folder, config, classes)
    elif is_archive(source):
        file = _read_sagemaker(source, config)
    options = {"name_map": own, "backbone": backbone, "reinitialise": reinitialise}
    if config:
        options["network_sees"] = _input_of(config)
    try:
        return load_weights(variables, file, **options)
    except UserError as error:
        differing = _differing(config, theirs, ("model",)) if theirs else []
        if not differing:
            raise
        raise UserError(f"{error} The networks differ: {'; '.join(differing)}.") from error


def count_classes(archive: str) -> int:
    """The number of classes of the detector in a model.tar.gz, exported here or by SageMaker."""
    if _is_exported(archive):
        return len(read_folder(archive).classes)
    return read_artefact(archive).num_classes


def new_layers(variables: dict, report: LoadReport) -> tuple[str, ...]:
    """The backbone's convolutions missing in the file, except those followed by a norm.

    A norm undoes the scale of the convolution before it.
    """
    backbone = variables["params"]["backbone"]
    return tuple(
        layer
        for layer in sorted(backbone)
        if f"params/backbone/{layer}/kernel" in report.kept and f"{layer}_bn" not in backbone
    )


def check_weights(source: str) -> None:
    """Raise a `UserError` if `source` is a path that does not exist."""
    if not (is_remote(source) or source.startswith("hf://") or pathlib.Path(source).exists()):
        raise UserError(
            f"{source}: no such file. Give a weight file, its URL, a model.tar.gz or the folder "
            "of a run; docs/weights.md says where to find ImageNet weights."
        )


def _local(source: str) -> str:
    """The path of a file, downloaded if it is remote; hf:// is left to `read_weights`."""
    if is_remote(source):
        return str(stage(source))
    check_weights(source)
    return source


def _input_of(config: ConfigDict) -> Input:
    return Input(config.preprocess.mean, config.preprocess.std)


def _is_exported(source: str) -> bool:
    if pathlib.Path(source, META).is_file():
        return True
    return is_archive(source) and META in read_archive(source)


def _read_run(
    workdir: pathlib.Path, ours: ConfigDict | None, classes: Sequence[str]
) -> tuple[WeightFile, NameMap, ConfigDict]:
    config = configs.read_config(workdir / CONFIG_FILE)
    _check_input(
        str(workdir), config, ours, f"the config of that run, --config {workdir / CONFIG_FILE}"
    )
    trained = load_trained(config, workdir, mesh=make_mesh(jax.local_devices()[:1]))
    tensors = flatten_dict(jax.device_get(trained.variables), sep="/")
    about = _about_classes(str(workdir), trained.classes, classes)
    file = WeightFile(f"{workdir}, step {trained.step}", tensors, about)
    return file, _own_names("a run of ours", config, tensors), config


def _read_exported(
    source: str, ours: ConfigDict | None, classes: Sequence[str]
) -> tuple[WeightFile, NameMap, ConfigDict]:
    folder = read_folder(source)
    config, tensors = folder.config(), folder.weights()
    _check_input(source, config, ours, "the settings in its meta.json")
    about = _about_classes(source, folder.classes, classes)
    names = _own_names("an exported detector of ours", config, tensors)
    return WeightFile(source, tensors, about), names, config


def _read_sagemaker(source: str, ours: ConfigDict | None) -> WeightFile:
    artefact = read_artefact(source)
    if ours:
        _check_anchors(source, artefact, build_network(ours, artefact.num_classes), ours)
    return artefact.weights


def _own_names(kind: str, config: ConfigDict, tensors: dict[str, np.ndarray]) -> NameMap:
    return NameMap(
        f"{kind}, {config.model.backbone}",
        {name: Target(name, unchanged) for name in tensors},
        backbones=(config.model.backbone,),
    )


def _check_input(source: str, config: ConfigDict, ours: ConfigDict | None, theirs_is: str) -> None:
    if differing := _differing(ours, config, ("preprocess", "anchors")):
        raise UserError(
            f"{source}: its weights are for another input or other anchors: "
            f"{'; '.join(differing)}. Train with {theirs_is}, or change these settings."
        )


def _differing(
    ours: ConfigDict | None, theirs: ConfigDict, sections: Sequence[str]
) -> Sequence[str]:
    before = dict(configs.flat_items(theirs))
    return [
        f"config.{name} is {value!r}, but {before[name]!r} in that run"
        for name, value in configs.flat_items(ours or theirs)
        if name.split(".")[0] in sections and before[name] != value
    ]


def _about_classes(source: str, theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """The report's lines about the classes; equally many others may be new names for them."""
    theirs, ours = tuple(theirs), tuple(ours)
    if theirs != ours and sorted(theirs) == sorted(ours):
        raise UserError(
            f"{source}: its classes are {', '.join(theirs)}; here they are in another order, "
            f"{', '.join(ours)}. Give config.data.classes in the order of the weights."
        )
    lines = {"classes": ", ".join(theirs)}
    if theirs != ours and len(theirs) == len(ours):
        pairs = zip(theirs, ours, strict=True)
        lines["classes are OTHERS here, and begin with their heads"] = ", ".join(
            f"{new} with that of {old}" for old, new in pairs if new != old
        )
    return lines


def _class_names(
    config: ConfigDict, classes: Sequence[str], artefact: Artefact | None, reinit_heads: bool
) -> tuple[str, ...]:
    names = tuple(classes) or tuple(config.data.classes)
    if artefact and not names:
        return tuple(f"class_{index}" for index in range(artefact.num_classes))
    if not names:
        raise UserError(
            "the file does not name its classes. Give them with --classes NAME,NAME,..."
        )
    if artefact and len(names) != artefact.num_classes and not reinit_heads:
        raise UserError(
            f"got {len(names)} class names, expected {artefact.num_classes}, because the artefact "
            "was trained on so many. Give all of them, or --reinit-heads to start with new heads."
        )
    return names


def _check_anchors(source: str, artefact: Artefact, network: Network, config: ConfigDict) -> None:
    """Raise a `UserError` if the network has other anchors than the heads were trained with."""
    per_cell = tuple(level.anchors_per_cell for level in artefact.levels)
    ours = network.model.heads.anchors_per_cell
    if per_cell != ours:
        raise UserError(
            f"{source}: its symbol has {per_cell} anchors per cell on its feature maps, but the "
            f"recipe {config.recipe} has {ours} at {config.model.image_size} px. Such a network "
            "cannot be imported."
        )
    shapes = map_shapes(network.model, config.model.image_size)
    furthest = np.abs(default_boxes(shapes, artefact.levels) - network.anchors).max()
    if furthest > _SAME_ANCHOR:
        raise UserError(
            f"{source}: the anchors of its symbol are up to {furthest:.2g} of the image away from "
            f"those of the recipe {config.recipe} at {config.model.image_size} px, expected at "
            f"most {_SAME_ANCHOR:.0e}. Set config.anchors to those of the symbol: "
            f"{[level.sizes for level in artefact.levels]}."
        )


def import_report(workdir: pathlib.Path) -> str:
    """The report of the weights that were imported into the folder of a run."""
    path = workdir / REPORT_FILE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else f"{path.name} is gone"


def _write_run(
    config: ConfigDict, variables: dict[str, Any], report: LoadReport, workdir: pathlib.Path
) -> None:
    """Write the files that a training run writes, without the optimizer state."""
    workdir.mkdir(parents=True, exist_ok=True)
    state = create_state(variables, optax.identity(), make_mesh(jax.local_devices()[:1]))
    with open_checkpoints(config, workdir) as checkpoints:
        checkpoints.save(state, None, classes=config.data.classes)
    (workdir / REPORT_FILE).write_text(f"{report}\n", encoding="utf-8")
    configs.save_config(config, workdir / CONFIG_FILE)
