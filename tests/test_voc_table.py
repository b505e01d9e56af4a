"""The experiment of the published table: its jobs, its table, and one row of all of it."""

import importlib
import json
import os
import pathlib
import re
import shutil

import jax
import pytest
from scripts import script

from ssd_jax.config import VOC_CLASSES, default_config
from ssd_jax.errors import UserError


@pytest.fixture(scope="module")
def voc_table():
    with script("experiments/voc_table/run.py") as module:
        yield module


def leave_report(out, row, seed, means, **protocol):
    """What a finished run leaves, as docs/reports.md has it, with all that the table reads."""
    config = default_config()
    config.batch_size = 16
    report = {
        "metrics": {"map_voc07": means[-1], "map_voc12": 0.8, "map_voc07_difficult_counted": 0.7,
                    "map_voc12_difficult_counted": 0.71, "map_mxnet": 0.72, "map_coco": 0.5}
        | {f"ap_voc07/{name}": means[-1] for name in VOC_CLASSES[1:]}
        | {"ap_voc07/aeroplane": None},
        "protocol": {"images": 4952, "image_sets": ["VOC2007/test"], "root": "data/VOCdevkit",
                     "fingerprint": "f", "iou_threshold": 0.5, "checkpoint": "last"} | protocol,
        "classes": VOC_CLASSES,
        "seed": seed,
        "config": config.to_dict(),
        "data": {"train": {"images": 160}},
        "curves": {"val": {"step": [10 * n for n in range(1, len(means) + 1)],
                           "map_voc07": means}},
        "how": {
            "images_per_second": 100.0,
            "starts": [{"environment": {"devices": {"kind": "H200", "count": 1}}, "code": None}],
        },
    }  # fmt: skip
    folder = out / "runs" / row / f"seed_{seed}"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def cells(text, name):
    """The cells of the first line of the Markdown that begins with `name`."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_rows_are_the_published_ones_in_both_recipes(voc_table):
    rows = {
        name: voc_table.config_of(name, (), scale=1.0, out=pathlib.Path("unused"))
        for name in voc_table.DEFAULT_ROWS
    }
    told = {
        name: (c.recipe, c.model.backbone.partition("_")[0], c.batch_size, c.model.image_size)
        for name, c in rows.items()
    }
    assert told == {
        f"{recipe}_{backbone}_{batch}": (recipe, backbone, batch, 512)
        for recipe in ("sagemaker", "paper")
        for backbone in ("vgg16", "resnet50")
        for batch in (64, 16)
    }
    assert [voc_table.ROWS[name].published for name in rows] == 2 * [0.780, 0.780, 0.791, 0.796]


def test_the_tasks_of_an_array_share_all_jobs(voc_table):
    jobs = voc_table.jobs(voc_table.DEFAULT_ROWS, 5)
    assert len(set(jobs)) == 40
    assert [job.seed for job in jobs[:9]] == [0] * 8 + [1]
    shares = [voc_table.jobs(voc_table.DEFAULT_ROWS, 5, task=task, tasks=7) for task in range(7)]
    assert sorted(job for share in shares for job in share) == sorted(jobs)


def slurm(**words):
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in words.items()}


@pytest.mark.parametrize(
    ("environment", "words", "expected"),
    [
        ({}, "", (0, 1)),
        (slurm(ID=43, MIN=40, MAX=79, STEP=1, COUNT=40), "", (3, 40)),
        (slurm(ID=6, MIN=2, MAX=9, STEP=4, COUNT=2), "", (1, 2)),
        (slurm(ID=19, MIN=7, MAX=19, STEP=1, COUNT=2), "--task 19 --tasks 40", (19, 40)),
    ],
)
def test_which_task_this_is(voc_table, environment, words, expected):
    options = voc_table.build_parser().parse_args(["--out", "x", *words.split()])
    assert voc_table.which_task(options, environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (slurm(ID=19, MIN=7, MAX=19, STEP=1, COUNT=2), r"array of 2 tasks.*--task \$SLURM_ARRAY"),
        (slurm(ID="abc", MIN=0, MAX=1, STEP=1, COUNT=2), "SLURM_ARRAY_TASK_ID: got 'abc'"),
        (slurm(ID=0), "SLURM_ARRAY_TASK_MIN: got None"),
    ],
)
def test_an_array_that_cannot_share_the_runs_is_refused(voc_table, environment, message):
    with pytest.raises(UserError, match=message):
        voc_table.array_task(environment)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "2"], "expected more than 0"),
        (["--task", "2", "--tasks", "2"], "less than --tasks 2"),
        (["--task", "2"], "expected both or none"),
        (["--config.batchsize=3"], "no such setting"),
    ],
)
def test_a_mistake_is_one_message(voc_table, tmp_path, capsys, words, message):
    assert voc_table.main(["--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_table_of_finished_runs(voc_table, tmp_path, capsys):
    for seed, mean in enumerate((0.78, 0.80, 0.79)):
        leave_report(tmp_path, "sagemaker_resnet50_16", seed, [0.5, mean])
    leave_report(tmp_path, "paper_vgg16_16", 10, [0.79])
    assert voc_table.main(["--out", str(tmp_path), "--collect"]) == 0
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert cells(text, "sagemaker_resnet50_16")[1:] == [
        "16", "0.001", "3", "0.796", "0.790 [0.780, 0.800]", "-0.006", "0.800 [0.800, 0.800]",
        "0.700 [0.700, 0.700]", "0.710 [0.710, 0.710]", "0.720 [0.720, 0.720]",
        "0.500 [0.500, 0.500]",
    ]  # fmt: skip
    assert cells(text, "paper_vgg16_16")[3:7] == ["1", "0.780", "0.790", "+0.010"]
    assert cells(text, "aeroplane") == ["aeroplane", "-", "-"]
    assert cells(text, "tvmonitor") == ["tvmonitor", "0.790 [0.780, 0.800]", "0.790"]
    assert "mAP@.5 of the last checkpoint" in text
    assert "Not comparable" not in text
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    assert [each["seed"] for each in told] == [0, 1, 2, 10]
    assert voc_table.tables.markdown(told) == text  # so it can be written anew without the runs
    # 160 images are 10 steps of 16.
    assert told[0]["curve"] == {"epochs": [1.0, 2.0], "map_voc07": [0.5, 0.78]}
    for name in ("table", "curves", "classes"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_beside_the_seeds_is_passed_over_and_told(voc_table, tmp_path, capsys):
    folder = leave_report(tmp_path, "paper_vgg16_16", 0, [0.79])
    folder.rename(folder.with_name("seed_0-again"))  # as report.html tells to repeat a run
    leave_report(tmp_path, "paper_vgg16_16", 0, [0.79])
    assert voc_table.main(["--out", str(tmp_path), "--collect"]) == 0
    told = capsys.readouterr()
    assert cells(told.out, "paper_vgg16_16")[3] == "1"
    assert f"not in the table: {folder}-again" in told.err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "results.jsonl: no such file"), ("{", "results.jsonl cannot be read")],
)
def test_results_that_cannot_be_read_are_one_message(content, message, voc_table, tmp_path, capsys):
    if content:
        (tmp_path / "results.jsonl").write_text(content)
    assert voc_table.tables.main([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_the_table_is_written_anew_from_the_results(voc_table, tmp_path, capsys):
    leave_report(tmp_path, "paper_vgg16_16", 0, [0.79])
    assert voc_table.main(["--out", str(tmp_path), "--collect"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "table.md").unlink()
    assert voc_table.tables.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == first.strip()
    assert (tmp_path / "table.md").is_file()


@pytest.mark.parametrize(
    ("name", "value"), [("fingerprint", "other"), ("iou_threshold", 0.75), ("checkpoint", "best")]
)
def test_what_was_measured_otherwise_is_not_compared_in_silence(voc_table, tmp_path, name, value):
    leave_report(tmp_path, "sagemaker_vgg16_64", 0, [0.1])
    leave_report(tmp_path, "sagemaker_vgg16_16", 0, [0.1], **{name: value})
    text = voc_table.tables.markdown(voc_table.records(tmp_path))
    assert "**Not comparable" in text
    assert re.search(rf"Measured, sagemaker_vgg16_16: .*{value}", text)


def change_report(folder, **settings):
    report = json.loads((folder / "report.json").read_text())
    config = default_config()
    config.update_from_flattened_dict({"batch_size": 16} | settings)
    (folder / "report.json").write_text(json.dumps(report | {"config": config.to_dict()}))


def test_seeds_with_other_settings_are_not_averaged_in_silence(voc_table, tmp_path):
    for seed in range(2):
        leave_report(tmp_path, "sagemaker_vgg16_64", seed, [0.1])
    other = leave_report(tmp_path, "paper_vgg16_16", 0, [0.1])
    for settings, told in (
        ({"seed": 1, "data.threads": 1, "data.train.root": "elsewhere"}, False),
        ({"model.dtype": "bfloat16"}, True),
    ):
        change_report(leave_report(tmp_path / str(told), "paper_vgg16_16", 1, [0.1]), **settings)
        shutil.copytree(other, tmp_path / str(told) / "runs/paper_vgg16_16/seed_0")
        text = voc_table.tables.markdown(voc_table.records(tmp_path / str(told)))
        assert ("comparable: the runs of paper_vgg16_16 have different settings" in text) == told
    assert "Not comparable" not in voc_table.tables.markdown(voc_table.records(tmp_path))


def test_a_setting_that_did_not_exist_yet_is_no_difference(voc_table):
    config = default_config().to_dict()
    before = {name: value for name, value in config.items() if name != "early_stopping"}
    assert voc_table.tables._settings(before) == voc_table.tables._settings(config)


def test_a_report_that_cannot_be_read_is_named(voc_table, tmp_path, capsys):
    report = leave_report(tmp_path, "paper_vgg16_16", 0, [0.1]) / "report.json"
    report.write_text("{")
    assert voc_table.main(["--out", str(tmp_path), "--collect"]) == 2
    assert f"{report} cannot be read" in capsys.readouterr().err


def test_the_table_tells_how_its_runs_were_measured(voc_table, tmp_path):
    leave_report(tmp_path, "sagemaker_vgg16_64", 0, [0.1], iou_threshold=0.75, checkpoint="best")
    text = voc_table.tables.markdown(voc_table.records(tmp_path))
    assert "mAP@.75 of the best checkpoint: " in text
    assert "fingerprint f, of the best checkpoint at an IoU of 0.75." in text
    leave_report(tmp_path, "sagemaker_vgg16_64", 1, [0.1])
    text = voc_table.tables.markdown(voc_table.records(tmp_path))
    assert "mAP@.5 or .75 of the best or last checkpoint: " in text


def test_a_finished_run_of_other_settings_is_refused(voc_table, tmp_path):
    folder = leave_report(tmp_path, "paper_vgg16_16", 0, [0.1])
    config = default_config()
    config.data.train.root = "data/VOCdevkit"
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    config.data.threads = 1  # says how it is computed only
    config.data.train.root = os.path.abspath(config.data.train.root)
    assert voc_table.is_finished(config, folder)
    config.batch_size = 8
    with pytest.raises(UserError, match=r"batch_size was 32 and is now 8"):
        voc_table.is_finished(config, folder)


def test_a_part_of_the_official_images_is_taken_where_they_are(voc_table, tmp_path):
    miniature, official = voc_table.miniature, tmp_path / "official"
    config = default_config()
    config.data.train.root = str(tmp_path / "nothing")
    drawn = miniature.make_devkit(config, official, 0.01)  # 50, 115 and 50 images
    config.data.train.root = str(drawn)
    taken = miniature.make_devkit(config, tmp_path / "taken", 0.002)
    names = (taken / "VOC2012" / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    assert len(names) == 23
    assert (names[0], names[-1]) == ("trainval_000000", "trainval_000114")
    image = taken / "VOC2012" / "JPEGImages" / f"{names[1]}.jpg"
    assert image.resolve() == official / "VOC2012" / "JPEGImages" / f"{names[1]}.jpg"


def test_in_miniature_the_given_settings_win_and_the_parts_of_a_run_stay(voc_table, tmp_path):
    words = [("optimizer.warmup_steps", "4"), ("epochs", "None"), ("steps", "5")]
    words += [("model.image_size", "128"), ("evaluate.every_epochs", "None")]
    config = voc_table.config_of("best_vgg16", words, scale=0.002, out=tmp_path)
    assert (config.steps, config.model.image_size, config.optimizer.warmup_steps) == (5, 128, 4)
    assert config.data.train.root == str(tmp_path / "VOCdevkit")
    for scale in (0.002, 0.01, 0.5):
        given = voc_table.config_of("best_vgg16", (), scale=scale, out=tmp_path)
        steps = given.epochs * 16551 * scale / given.batch_size
        assert given.optimizer.warmup_steps <= 0.01 * steps + 1


@pytest.fixture
def one_device(monkeypatch):
    """Of the eight; and XLA's optimisations, which are off in miniature, as they were."""
    only = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: only)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.long
def test_one_row_from_nothing_to_the_table(voc_table, tmp_path, capfd, one_device):
    words = ["--out", str(tmp_path), "--scale", "0.004", "--rows", "paper_vgg16_16", "--seeds", "2"]
    words += ["--config.model.backbone=small", "--config.model.batch_norm=batch"]
    # What takes long to compile is left out.
    words += ["--config.augment.crop.min_ious=()", "--config.augment.distort.probability=0"]
    words += ["--config.augment.expand.probability=0"]

    assert voc_table.main([*words, "--dry-run"]) == 0
    rehearsed = capfd.readouterr().out
    for part in ("train", "val", "weights", "memory", "time"):
        assert f"\n  {part} " in rehearsed
    assert "1 of 1 rows can be trained: with 2 seeds 2 runs" in rehearsed
    assert not (tmp_path / "runs").exists()

    assert voc_table.main([*words, "--task", "0", "--tasks", "2"]) == 0
    assert "== paper_vgg16_16, seed 0 (1 of 1)\n" in capfd.readouterr().out
    assert voc_table.main(words) == 0
    told = capfd.readouterr().out
    assert "== paper_vgg16_16, seed 0 (1 of 2): finished before" in told
    assert "== paper_vgg16_16, seed 1 (2 of 2)\n" in told
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [each["seed"] for each in results] == [0, 1]
    assert results[0]["curve"]["epochs"][-1] == pytest.approx(240 * 0.004, abs=0.02)
    runs = [tmp_path / "runs" / "paper_vgg16_16" / f"seed_{seed}" for seed in (0, 1)]
    losses = [json.loads((run / "report.json").read_text())["curves"]["train"] for run in runs]
    assert losses[0] != losses[1]
    assert cells((tmp_path / "table.md").read_text(), "paper_vgg16_16")[3] == "2"


def test_a_dry_run_names_every_problem_of_every_part(voc_table, tmp_path, capsys):
    nowhere = [
        f"--config.{name}={tmp_path / 'nowhere' / name}"
        for name in ("data.train.root", "data.val.root", "weights.path")
    ]
    rows = ["--rows", "paper_vgg16_64", "sagemaker_vgg16_16"]
    assert voc_table.main(["--out", str(tmp_path), "--dry-run", *rows, *nowhere]) == 2
    told = capsys.readouterr().out
    for name in ("data.train.root", "data.val.root", "weights.path"):
        assert len(re.findall(f"PROBLEM .*/nowhere/{re.escape(name)}", told)) == 2
    assert "0 of 2 rows can be trained" in told


def test_the_model_of_time_has_the_images_a_second_of_its_source(voc_table):
    rehearsal = importlib.import_module("rehearsal")
    config = voc_table.config_of("paper_resnet50_64", (), scale=1.0, out=pathlib.Path("unused"))
    network = rehearsal.build_network(config, 20)
    float32 = rehearsal.modelled_seconds(config, network)
    config.model.dtype = "bfloat16"
    bfloat16 = rehearsal.modelled_seconds(config, network)
    assert float32 == 2 * bfloat16
    # 1,400 images/s at 0.70 of the roofline, whose own count of FLOP is 5 % off XLA's.
    assert config.batch_size / bfloat16 == pytest.approx(1400, rel=0.05)


def test_a_backbone_without_a_model_of_its_time_is_told(voc_table):
    rehearsal = importlib.import_module("rehearsal")
    config = voc_table.config_of("paper_vgg16_16", (), scale=1.0, out=pathlib.Path("unused"))
    config.model.backbone = "small"
    with pytest.raises(UserError, match="no model for the backbone small, only for vgg16, resnet5"):
        rehearsal.modelled_seconds(config, None)


def test_a_row_that_does_not_fit_hides_no_other_problem(voc_table, capsys):
    rehearsal, found = importlib.import_module("rehearsal"), []
    with rehearsal._told(found):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")
    assert found == ["RESOURCE_EXHAUSTED: Out of memory"]
    with pytest.raises(jax.errors.JaxRuntimeError), rehearsal._told(found):
        raise jax.errors.JaxRuntimeError("INTERNAL: a device is lost")


def test_one_failure_does_not_keep_other_runs_from_theirs(voc_table, tmp_path, capsys):
    rows = ["--rows", "paper_vgg16_16", "paper_vgg16_64", "--seeds", "1"]
    leave_report(tmp_path, "sagemaker_vgg16_16", 0, [0.5])
    nowhere = f"--config.data.train.root={tmp_path / 'nowhere'}"
    assert voc_table.main(["--out", str(tmp_path), *rows, nowhere]) == 2
    told = capsys.readouterr()
    assert "failed: paper_vgg16_16, seed 0: " in told.err
    assert "failed: paper_vgg16_64, seed 0: " in told.err
    assert "| sagemaker_vgg16_16 |" in told.out


def test_a_row_that_does_not_fit_does_not_keep_other_runs_from_theirs(
    voc_table, tmp_path, capsys, monkeypatch
):
    def out_of_memory(config, workdir):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore")

    monkeypatch.setattr("ssd_jax.runs.training.run_training", out_of_memory)
    rows = ["--rows", "paper_vgg16_16", "paper_vgg16_64", "--seeds", "1"]
    assert voc_table.main(["--out", str(tmp_path), *rows]) == 2
    told = capsys.readouterr().err
    for row in ("paper_vgg16_16", "paper_vgg16_64"):
        assert f"failed: {row}, seed 0: RESOURCE_EXHAUSTED: Out of memory\n" in told

    def in_the_way(config, workdir):
        raise FileExistsError(17, "File exists", str(workdir))

    monkeypatch.setattr("ssd_jax.runs.training.run_training", in_the_way)
    assert voc_table.main(["--out", str(tmp_path), *rows]) == 2
    assert capsys.readouterr().err.count("File exists") == 4  # when it happens, and at the end

    def broken(config, workdir):
        raise jax.errors.JaxRuntimeError("INTERNAL: a device is lost")

    monkeypatch.setattr("ssd_jax.runs.training.run_training", broken)
    with pytest.raises(jax.errors.JaxRuntimeError):
        voc_table.main(["--out", str(tmp_path), *rows])
