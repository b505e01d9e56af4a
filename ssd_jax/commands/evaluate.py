"""`ssd-jax evaluate`."""

from ssd_jax.commands.common import (
    cluster_arguments,
    cluster_options,
    folder_or_url,
    join_cluster,
    local_path,
    names_argument,
    refuse_misplaced,
    step,
    verb,
)

NOTE = """\
With --detections, FILE is a JSON file of COCO results, or a folder with the result files of the VOC
devkit (comp4_det_test_CLASS.txt), see docs/evaluation.md; the ground truth is any data set of
docs/data.md. No model is run:
  ssd-jax evaluate --detections results/ --ground-truth data/VOCdevkit --split VOC2007/test
  ssd-jax evaluate --detections results.json --ground-truth instances_val2017.json --metric coco"""


def add(verbs) -> None:
    """Adds the verb."""
    evaluate = verb(
        verbs,
        "evaluate",
        _evaluate,
        "measure a trained detector, or the detections of any program",
        settings=True,
        example="ssd-jax evaluate --workdir runs/bccd --split test",
        note=NOTE,
    )
    what = evaluate.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", metavar="DIR", type=folder_or_url, help="folder of a run")
    what.add_argument(
        "--detections", metavar="FILE", type=local_path, help="detections to measure, see below"
    )
    evaluate.add_argument(
        "--ground-truth", metavar="SRC", help="with --detections: the data set they belong to"
    )
    names_argument(
        evaluate,
        "--split",
        "with --workdir: train, val or test (default: the split of its report); with "
        "--ground-truth: its splits",
    )
    names_argument(
        evaluate, "--classes", "with --ground-truth: class names in the order of their ids"
    )
    evaluate.add_argument(
        "--metric",
        choices=("voc07", "voc12", "mxnet", "coco"),
        help="with --detections: the metric of the last line (default: voc07)",
    )
    evaluate.add_argument(
        "--out", metavar="DIR", type=local_path, help="write evaluation.json and plots there"
    )
    step(evaluate)
    cluster_arguments(evaluate)


def _evaluate(options, rest):
    from ssd_jax.config import split_assignments
    from ssd_jax.errors import UserError

    assignments = split_assignments(rest)
    misplaced = {
        "--ground-truth": options.workdir and options.ground_truth,
        "--classes": options.workdir and options.classes,
        "--metric": options.workdir and options.metric,
        "--step": options.detections and options.step,
        "--config": options.detections and assignments,
    }
    if options.detections:
        misplaced |= cluster_options(options)
    refuse_misplaced(misplaced, "with --workdir" if options.workdir else "with --detections")
    if options.workdir and options.split not in ([], ["train"], ["val"], ["test"]):
        raise UserError(
            f"--split: got {', '.join(options.split)}, expected one of train, val and test."
        )
    if options.workdir:
        _evaluate_run(options, assignments)
    else:
        _evaluate_detections(options)


def _evaluate_run(options, assignments):
    from ssd_jax import config as configs
    from ssd_jax.config_check import check
    from ssd_jax.train.mirror import workdir_to_read

    workdir = workdir_to_read(options.workdir)
    config = configs.read_config(workdir / configs.CONFIG_FILE)
    configs.override(config, assignments)
    check(config)
    join_cluster(options, config)
    from ssd_jax.runs.outcome import run_evaluation  # late, because its imports take seconds

    split = options.split[0] if options.split else None
    run_evaluation(config, workdir, split=split, step=options.step, out=options.out)


def _evaluate_detections(options):
    from ssd_jax.errors import UserError
    from ssd_jax.evaluation.detection_files import read_detections, read_ground_truth
    from ssd_jax.evaluation.metrics import (
        diagnose,
        headline,
        measure_detections,
        results_dict,
        table,
    )
    from ssd_jax.files import make_folder, write_json
    from ssd_jax.runs.log import EVALUATION_FILE
    from ssd_jax.visualize.evaluation import draw_measures

    if not options.ground_truth:
        raise UserError("--ground-truth is missing. Give the data set of the detections.")
    if options.out:
        make_folder(options.out)
    labelled = read_ground_truth(options.ground_truth, split=options.split, classes=options.classes)
    evaluation = measure_detections(
        labelled.ground_truths,
        read_detections(options.detections, labelled),
        labelled.image_sizes,
        num_classes=len(labelled.classes),
        coco_objects=labelled.coco,
    )
    diagnosis = diagnose(evaluation)
    print(table(evaluation, diagnosis, labelled.classes))
    print(headline(evaluation, options.metric or "voc07"))
    if options.out:
        made_of = {
            "detections": str(options.detections),
            "ground_truth": options.ground_truth,
            "split": options.split,
        }
        results = results_dict(evaluation, diagnosis, labelled.classes)
        write_json(options.out / EVALUATION_FILE, made_of | results)
        draw_measures(evaluation, diagnosis, options.out, classes=labelled.classes)
