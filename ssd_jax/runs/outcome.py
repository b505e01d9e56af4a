"""How well a run did: measured once more from its checkpoint, printed, written and drawn."""

import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssd_jax import __version__, experiment
from ssd_jax.cluster import run_facts, tell, together
from ssd_jax.config import CONFIG_FILE
from ssd_jax.config_check import check
from ssd_jax.data.open import split_of_role
from ssd_jax.data.sources.base import Source
from ssd_jax.detector import load_trained
from ssd_jax.evaluation import metrics
from ssd_jax.evaluation.metrics import ErrorAnalysis, Evaluation
from ssd_jax.evaluation.run import evaluate
from ssd_jax.files import make_folder, write_json
from ssd_jax.literals import shell_path
from ssd_jax.network import build_predict
from ssd_jax.report.collect import describe_run, open_run
from ssd_jax.report.examples import choose_examples
from ssd_jax.report.page import write_page
from ssd_jax.report.starts import command_line
from ssd_jax.runs.log import EVALUATION_FILE, METRICS_FILE, PICTURES_FOLDER, REPORT_FILE
from ssd_jax.runs.same_run import find_changes
from ssd_jax.runs.training_data import decoding_threads
from ssd_jax.sharding import each_device_alone, make_mesh
from ssd_jax.visualize.evaluation import draw_measures
from ssd_jax.visualize.run import SHOWN, draw_curves, draw_detections


class Measured(NamedTuple):
    """The outcome of a run: which checkpoint was measured on what, and how well it did.

    `checkpoint` is how the step was chosen: last, best, or the step itself.
    """

    split: str
    step: int
    checkpoint: str
    source: Source
    evaluation: Evaluation
    diagnosis: ErrorAnalysis

    def __repr__(self) -> str:
        """One line instead of the arrays, which hold all images."""
        result = metrics.headline(self.evaluation, "voc07")
        return f"<Measured on {self.split} at step {self.step}: {result}>"


def run_evaluation(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    split: str | None,
    step: str | None,
    out: pathlib.Path | None = None,
) -> Measured:
    """Measures a checkpoint of a run and prints the outcome, as the run itself did at its end.

    `out` is a folder for the numbers and their plots.
    """
    check(config)
    writes = out is not None and jax.process_index() == 0
    with together():
        if writes:
            make_folder(out)
    measured = measure(config, workdir, split=split, step=step)
    tell(f"{measured.split}: {measured.source.describe()}")
    tell(table(measured))
    tell(headline(config, measured))
    if writes:
        write_evaluation(config, workdir, out, measured)
    return measured


def measure(
    config: ConfigDict,
    workdir: str | pathlib.Path,
    *,
    split: str | None = None,
    step: str | int | None = None,
    mesh: Mesh | None = None,
    watch: Callable[[Iterator], Iterator] = iter,
    sources: Mapping[str, Source] = MappingProxyType({}),
) -> Measured:
    """Evaluates the checkpoint that `step` names (None: the config's choice) on a split.

    `split` defaults to the test split, or to the validation split if there is no test split. No
    split is augmented. Splits in `sources` are used as they are, and not opened again.
    """
    split = split or ("test" if config.data.test.root or "test" in sources else "val")
    mesh = mesh or make_mesh()
    checkpoint = str(config.checkpoint.select if step is None else step)
    trained = load_trained(config, workdir, mesh=mesh, step=checkpoint)
    with together() as facts:
        source = (
            sources[split]
            if split in sources
            else experiment.build_source(config, split, classes=trained.classes)
        )
        facts |= run_facts(config) | data_report(source)
    predict = each_device_alone(build_predict(config, trained.network), mesh)
    evaluation = evaluate_variables(
        config,
        predict,
        trained.variables,
        source=source,
        mesh=mesh,
        watch=watch,
        with_coco=True,
    )
    diagnosis = metrics.diagnose(evaluation)
    return Measured(split, trained.step, checkpoint, source, evaluation, diagnosis)


def report(config: ConfigDict, measured: Measured) -> dict[str, Any]:
    """The content of report.json: the metrics, and the protocol they were measured with."""
    results = metrics.results_dict(measured.evaluation, measured.diagnosis, measured.source.classes)
    place = config.data[measured.split]
    return {
        "headline": headline(config, measured),
        **results,
        "protocol": results["protocol"]
        | {
            "headline": metrics.protocol_of(measured.evaluation, config.evaluate.metric),
            "split": measured.split,
            "root": place.root,
            "image_sets": split_of_role(place.root, place.image_sets, measured.split),
            "fingerprint": measured.source.fingerprint,
            "image_fingerprint": measured.source.image_fingerprint,
            "recipe": config.recipe,
            "checkpoint": measured.checkpoint,
        },
        "step": measured.step,
        "seed": config.seed,
    }


def headline(config: ConfigDict, measured: Measured) -> str:
    """E.g. "mAP@.5 (VOC07 11-point) = 0.962"."""
    return metrics.headline(measured.evaluation, config.evaluate.metric)


def table(measured: Measured) -> str:
    """All metrics, and the protocol."""
    rows = metrics.table(measured.evaluation, measured.diagnosis, measured.source.classes)
    speed = metrics.speed(measured.evaluation)
    return (
        f"{rows}\nstep {measured.step}, split {measured.split}, in {speed['seconds']:.1f} s "
        f"({speed['images_per_second']:.1f} images/s, compilation included)"
    )


def data_report(source: Source) -> dict[str, Any]:
    """What a split contains, and everything that was left out of it."""
    return {
        "images": len(source),
        "objects": len(source.annotations.labels),
        "fingerprint": source.fingerprint,
        "image_fingerprint": source.image_fingerprint,
        "doctor": source.findings,
        "left_out": source.problems.counts,
        "left_out_because": [str(error) for error in source.problems.found],
    }


def write_evaluation(
    config: ConfigDict, workdir: pathlib.Path, folder: pathlib.Path, measured: Measured
) -> None:
    """Writes the numbers of an evaluation, as in report.json, and its plots to a folder.

    Also the command, and each setting that differs from that of the run in `workdir`.
    """
    changes = find_changes(config, workdir / CONFIG_FILE, free=())
    how = {
        "run_changes": {name: {"run": was, "here": now} for name, (was, now) in changes.items()},
        "how": metrics.speed(measured.evaluation)
        | {"command": command_line(sys.argv), "ssd_jax": __version__},
    }
    write_json(folder / EVALUATION_FILE, report(config, measured) | how)
    draw_measures(measured.evaluation, measured.diagnosis, folder, classes=measured.source.classes)


def write_result(
    config: ConfigDict, workdir: pathlib.Path, measured: Measured, sources: dict[str, Source]
) -> None:
    """Writes report.json, report.html and the plots of a finished run to its folder."""
    pictures = workdir / PICTURES_FOLDER
    examples = choose_examples(
        measured.evaluation.ground_truths,
        measured.evaluation.detections,
        num_classes=len(measured.source.classes),
        iou_threshold=config.evaluate.iou_threshold,
    )
    names = measured.source.names
    write_json(
        workdir / REPORT_FILE,
        report(config, measured)
        | {
            "data": {split: data_report(source) for split, source in sources.items()},
            "examples": {
                kind: [{**each._asdict(), "image": names[each.image]} for each in chosen]
                for kind, chosen in examples.items()
            },
        }
        | describe_run(config, workdir),
    )
    draw_curves(workdir / METRICS_FILE, pictures / "curves.png")
    draw_measures(
        measured.evaluation, measured.diagnosis, pictures, classes=measured.source.classes
    )
    evenly = np.linspace(0, len(names) - 1, SHOWN).round().astype(int)
    chosen = {"detections": sorted(set(evenly.tolist()))} | {
        f"examples_{kind}": [each.image for each in found] for kind, found in examples.items()
    }
    for name, images in chosen.items():
        draw_detections(
            measured.source,
            measured.evaluation,
            pictures / f"{name}.png",
            images=images,
            iou_threshold=config.evaluate.iou_threshold,
        )
    write_page(open_run(workdir), workdir)


def where_things_are(config: ConfigDict, measured: Measured, workdir: pathlib.Path | str) -> str:
    """What a finished run has written to its folder or URL, and commands that may come next."""
    # The run does not know the path of a source that a program gave.
    has_place = bool(config.data[measured.split].root)
    place = "" if has_place else f" --config.data.{measured.split}.root=DIR"
    # No URL here, because only --format transform can write to one.
    found = "predictions" if "://" in str(workdir) else f"{workdir}/predictions"
    # As the user called it, because the bare name may not be on the path of a virtual environment.
    command = shlex.quote(sys.argv[0]) if sys.argv[0].endswith("ssd-jax") else "ssd-jax"
    return f"""
In {workdir}:
  pictures/       curves, augmented images, detections next to ground truth, precision and recall
  metrics.jsonl   losses and metrics over the steps; tensorboard/ has the same
  report.html     the whole run on one page; report.json has its numbers
  config.json     every setting
  checkpoints/    the last ones and the best one
Next steps:
  {command} evaluate --workdir {shell_path(workdir)}{place}
  {command} predict --workdir {shell_path(workdir)} IMAGE... --out {shell_path(found)}
"""


def evaluate_variables(
    config: ConfigDict,
    predict: Callable,
    variables: Any,
    *,
    source: Source,
    mesh: Mesh,
    watch: Callable[[Iterator], Iterator] = iter,
    with_coco: bool = False,
) -> Evaluation:
    """`evaluation.run.evaluate` with the settings of the config.

    Without `with_coco`, the COCO metric is measured only if it is `config.evaluate.metric`.
    """
    return evaluate(
        predict,
        variables,
        source,
        mesh=mesh,
        batch_size=config.evaluate.batch_size,
        canvas=config.data.canvas,
        iou_threshold=config.evaluate.iou_threshold,
        num_threads=decoding_threads(config),
        with_coco=with_coco or config.evaluate.metric == "coco",
        watch=watch,
    )
