"""How well a run did: measured once more from its checkpoint, told, written and drawn."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import experiment, gallery
from ssd_jax.data.sources.base import Source
from ssd_jax.detector import load_trained
from ssd_jax.evaluation.run import Evaluation, evaluate, summary
from ssd_jax.recipes import recipe_changes
from ssd_jax.reporting import METRICS_FILE, REPORT_FILE, write_json
from ssd_jax.sharding import each_device_alone, make_mesh

PICTURES = "pictures"


class Measured(NamedTuple):
    """The outcome of a run: which checkpoint was measured on what, and how well it did."""

    split: str
    step: int
    source: Source
    evaluation: Evaluation


def measure(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    split: str | None = None,
    step: str | None = None,
    mesh: Mesh | None = None,
) -> Measured:
    """Evaluates the checkpoint that `step` names (None: the config's choice) on a split.

    Without `split` it is the test split, or the validation split where there is no other.
    """
    split = split or ("test" if config.data.test.root else "val")
    mesh = mesh or make_mesh()
    trained = load_trained(config, workdir, mesh=mesh, step=step)
    source = experiment.build_source(config, split, classes=trained.classes)
    predict = each_device_alone(experiment.build_predict(config, trained.network), mesh)
    evaluation = evaluate_variables(config, predict, trained.variables, source=source, mesh=mesh)
    return Measured(split, trained.step, source, evaluation)


def report(config: ConfigDict, measured: Measured) -> dict[str, Any]:
    """The content of report.json: metrics with the protocol that they were measured by."""
    return {
        "metrics": summary(measured.evaluation, measured.source.classes),
        "protocol": measured.evaluation.result.protocol.to_dict()
        | {
            "split": measured.split,
            "root": config.data[measured.split].root,
            "image_sets": config.data[measured.split].image_sets,
            "fingerprint": measured.source.fingerprint,
            "recipe": config.recipe,
            "recipe_changes": {
                name: {"recipe": theirs, "run": ours}
                for name, (theirs, ours) in recipe_changes(config).items()
            },
            "checkpoint": config.checkpoint.select,
        },
        "step": measured.step,
        "classes": measured.source.classes,
        "seed": config.seed,
    }


def headline(config: ConfigDict, measured: Measured) -> str:
    """E.g. "mAP@.5 (VOC07 11-point) = 0.962"."""
    result = measured.evaluation.result
    name, value = {
        "voc07": ("VOC07 11-point", result.map11),
        "voc12": ("VOC12 area", result.map),
        "mxnet": ("mxnet-ssd 11-point", measured.evaluation.mxnet.map11),
    }[config.evaluate.metric]
    threshold = f"{config.evaluate.iou_threshold:g}".removeprefix("0")
    text = "undefined: no object to find" if value is None else f"{value:.3f}"
    return f"mAP@{threshold} ({name}) = {text}"


def table(measured: Measured) -> str:
    """Average precision of each class, and the protocol."""
    result = measured.evaluation.result
    classes = measured.source.classes
    width = max(map(len, ("class", *classes)))
    number = lambda value: "    -" if value is None else f"{value:.3f}"  # noqa: E731
    lines = [f"{'class':{width}}  11-point   area  objects"]
    for name, of_class in zip(classes, result.per_class, strict=True):
        lines.append(
            f"{name:{width}}     {number(of_class.ap11)}  {number(of_class.ap)}  {of_class.npos:7,}"
        )
    lines.append(f"{'mean':{width}}     {number(result.map11)}  {number(result.map)}")
    counted, mxnet = measured.evaluation.counted, measured.evaluation.mxnet
    lines.append(f"with difficult objects asked for {number(counted.map11)}, ")
    lines[-1] += f"by mxnet-ssd's own metric {number(mxnet.map11)} (11-point)"
    lines.append(
        f"step {measured.step}, split {measured.split}: {result.protocol.describe('11-point')}"
    )
    return "\n".join(lines)


def data_report(source: Source) -> dict[str, Any]:
    """What a split held, and everything that was left out of it."""
    return {
        "images": len(source),
        "objects": len(source.annotations.labels),
        "fingerprint": source.fingerprint,
        "left_out": source.problems.counts,
        "left_out_because": [str(error) for error in source.problems.found],
    }


def write_result(
    config: ConfigDict, workdir: pathlib.Path, measured: Measured, sources: dict[str, Source]
) -> None:
    """Leaves report.json and the pictures of a finished run in its folder."""
    data = {split: data_report(source) for split, source in sources.items()}
    write_json(workdir / REPORT_FILE, report(config, measured) | {"data": data})
    pictures = workdir / PICTURES
    gallery.draw_curves(workdir / METRICS_FILE, pictures / "curves.png")
    gallery.draw_precision_recall(
        measured.evaluation, pictures / "precision_recall.png", classes=measured.source.classes
    )
    gallery.draw_detections(
        measured.source,
        measured.evaluation,
        pictures / "detections.png",
        iou_threshold=config.evaluate.iou_threshold,
    )


def evaluate_variables(
    config: ConfigDict, predict: Callable, variables: Any, *, source: Source, mesh: Mesh
) -> Evaluation:
    """`evaluation.run.evaluate` with the words of the config."""
    return evaluate(
        predict,
        variables,
        source,
        mesh=mesh,
        batch_size=config.evaluate.batch_size,
        canvas=config.data.canvas,
        iou_threshold=config.evaluate.iou_threshold,
        num_threads=config.data.threads,
    )
