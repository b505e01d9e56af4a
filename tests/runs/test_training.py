"""A whole run: what it leaves behind, and the verbs that use it."""

import functools
import json
import pathlib
import re
import shlex
import shutil
from unittest.mock import Mock

import cv2
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny import tiny_config

from ssd_jax.cli import main
from ssd_jax.config import default_config, read_config
from ssd_jax.config_check import images_together
from ssd_jax.data.sources.voc import open_voc
from ssd_jax.detector import Detector
from ssd_jax.errors import UserError
from ssd_jax.experiment import build_source
from ssd_jax.locks import only_training
from ssd_jax.runs import before_training
from ssd_jax.runs.describe_data import describe_data
from ssd_jax.runs.log import read_metrics
from ssd_jax.runs.outcome import Measured, measure, run_evaluation
from ssd_jax.runs.training import run_training
from ssd_jax.sharding import check_divides, make_mesh
from ssd_jax.train.watchdog import Watchdog


def test_a_run_leaves_its_folder_complete(tiny_run):
    for name in ("augmented", "curves", "detections", "precision_recall"):
        assert cv2.imread(str(tiny_run / f"pictures/{name}.png")) is not None
    assert list((tiny_run / "tensorboard").glob("events.*"))
    records = read_metrics(tiny_run / "metrics.jsonl")
    training = [record for record in records if record["split"] == "train"]
    assert [record["step"] for record in training] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "class_loss", "box_loss", "lr", "data_wait"} <= training[0].keys()
    # 20 images in batches of 8.
    assert [record["epoch"] for record in training] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2, 2.4])
    times = [record["time"] for record in records]
    assert times == sorted(times)
    validation = [record for record in records if record["split"] == "val"]
    assert [record["step"] for record in validation] == [4, 6]
    for record in validation:
        assert record["images_per_second"] == pytest.approx(12 / record["seconds"])
    report = json.loads((tiny_run / "report.json").read_text())
    assert report["metrics"]["map_voc07"] == records[-1]["map_voc07"]
    assert report["protocol"]["images"] == 12
    assert "11-point" in report["protocol"]["map11"]
    assert report["step"] == 6


def test_the_command_in_the_report_repeats_the_run(optimised_steps, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(shapes)
    config = tiny_config(pathlib.Path("shapes"))
    run_training(config, pathlib.Path("runs/one run"))
    report = json.loads(pathlib.Path("runs/one run/report.json").read_text())
    assert main(shlex.split(report["how"]["repeat"])[1:]) == 0
    again = json.loads(pathlib.Path("runs/one run-again/report.json").read_text())
    assert again["metrics"] == report["metrics"]


def test_the_last_evaluation_has_the_time_to_compile(tiny_run, shapes, tmp_path, monkeypatch):
    phases = []
    monkeypatch.setattr(Watchdog, "enter", lambda self, phase, step=None: phases.append(phase))
    again = shutil.copytree(tiny_run, tmp_path / "run")
    run_training(tiny_config(shapes), again, mesh=make_mesh(jax.devices()[:1]))
    # The limit of a phase comes from the ones of that name before.
    assert phases[0] == "last evaluation"
    assert "evaluation" not in phases


@pytest.fixture(scope="module")
def measured(tiny_run) -> Measured:
    """Of `tiny_run`, on one device."""
    config = read_config(tiny_run / "config.json")
    return measure(config, tiny_run, mesh=make_mesh(jax.devices()[:1]))


def test_evaluate_gives_exactly_the_number_of_the_run(tiny_run, measured):
    report = json.loads((tiny_run / "report.json").read_text())
    assert measured.evaluation.result.map11 == report["metrics"]["map_voc07"]


def test_eight_devices_measure_what_one_does(tiny_run, measured):
    one = measured.evaluation
    eight = measure(read_config(tiny_run / "config.json"), tiny_run, mesh=make_mesh()).evaluation
    assert len(one.detections) == len(eight.detections) == 12
    for a, b in zip(one.detections, eight.detections, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        # Scores that differ by a rounding error may change places.
        distance = np.abs(a.boxes[:, None] - b.boxes[None]).max(axis=-1)
        same = (distance < 1e-2) & (a.labels[:, None] == b.labels[None])
        assert same.any(axis=1).all()
        assert same.any(axis=0).all()


def test_the_evaluate_verb_prints_the_headline_last_and_how_long_it_took(
    tiny_run, tmp_path, capsys
):
    command = ["evaluate", "--workdir", str(tiny_run), "--step", "best", "--out", str(tmp_path)]
    assert main(command) == 0
    out = capsys.readouterr().out
    lines = out.strip().splitlines()
    assert lines[-1].startswith("mAP@.5 (VOC07 11-point) = 0.")
    assert lines[0].startswith("val: 12 images")
    assert lines[1].split()[:5] == ["class", "11-point", "area", "COCO", "objects"]
    assert re.search(r"step 6, split val, in \d+\.\d s \(\d+\.\d images/s, com", out)
    written, report = (
        json.loads(path.read_text())
        for path in (tmp_path / "evaluation.json", tiny_run / "report.json")
    )
    assert written["how"]["images_per_second"] == pytest.approx(12 / written["how"]["seconds"])
    assert written.pop("run_changes") == {}
    asked = [each["protocol"].pop("checkpoint") for each in (written, report)]
    assert asked == ["best", "last"]
    # On more devices, which round the scores otherwise.
    best, same = (each.pop("thresholds")["all"] for each in (written, report))
    assert best == pytest.approx(same, rel=1e-5)
    # All else is the outcome, which is the same.
    del written["how"]
    assert {name: report[name] for name in written} == written


def test_the_training_split_is_measured_without_augmentation(tiny_run, shapes, capsys):
    command = ["evaluate", "--workdir", str(tiny_run), "--split"]
    assert main([*command, "train"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("train: 20 images")
    assert "step 6, split train" in out
    config = read_config(tiny_run / "config.json")
    config.data.val.image_sets = ("train",)
    as_val, as_train = (
        measure(config, tiny_run, split=split, mesh=make_mesh(jax.devices()[:1])).evaluation
        for split in ("val", "train")
    )
    assert as_train.result.map == as_val.result.map
    assert main([*command, "all"]) == 2
    assert "got all, expected one of train, val and test" in capsys.readouterr().err


def test_a_run_tells_where_it_is_for_its_user(shapes, tmp_path, monkeypatch, capsys):
    nothing = Measured("val", 1, "last", None, None, None)
    monkeypatch.setattr("ssd_jax.runs.training._run_training", lambda *_, **__: nothing)
    monkeypatch.setattr("ssd_jax.runs.training.headline", lambda *_: "")
    run_training(tiny_config(shapes), tmp_path, called="s3://bucket/run")
    told = capsys.readouterr().out
    assert "evaluate --workdir s3://bucket/run\n" in told
    run_training(tiny_config(shapes), tmp_path, sources={"val": open_voc(shapes, ("val",))})
    assert f"evaluate --workdir {tmp_path} --config.data.val.root=DIR\n" in capsys.readouterr().out
    assert "--out predictions\n" in told
    assert str(tmp_path) not in told
    run_training(tiny_config(shapes), tmp_path / "my run")
    told = capsys.readouterr().out
    assert f"predict --workdir '{tmp_path}/my run' IMAGE... --out '{tmp_path}/my run/pre" in told


def test_predict_writes_json_and_a_drawing(tiny_run, shapes, tmp_path):
    image = next((shapes / "JPEGImages").iterdir())
    command = ["predict", "--workdir", str(tiny_run), str(image), "--out", str(tmp_path)]
    assert main([*command, "--score", "0"]) == 0
    result = json.loads((tmp_path / f"{image.stem}.json").read_text())
    height, width = cv2.imread(str(image)).shape[:2]
    assert (result["height"], result["width"]) == (height, width)
    scores = [found["score"] for found in result["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 0
    for found in result["detections"]:
        assert found["class"] in ("cross", "ring", "triangle")
        xmin, ymin, xmax, ymax = found["box_xyxy_px"]
        assert 0 <= xmin <= xmax <= width
        assert 0 <= ymin <= ymax <= height
    assert cv2.imread(str(tmp_path / f"{image.stem}.png")) is not None


def test_a_detector_gives_what_the_evaluation_measured(tiny_run, measured):
    example = measured.source[0]
    (found,) = Detector.load(tiny_run)([example.image])
    height, width = example.size
    np.testing.assert_allclose(
        found.boxes * [width, height, width, height] + np.array([1, 1, 0, 0]),
        measured.evaluation.detections[0].boxes,
        atol=1e-2,
    )


def test_a_diverged_run_stops_with_step_and_images(shapes, tmp_path, capsys):
    arguments = ["train", "--config", str(write_config(tmp_path, shapes)), "--workdir"]
    arguments += [str(tmp_path / "run"), "--config.optimizer.learning_rate=1e30"]
    arguments += ["--config.optimizer.clip_norm=5"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "step 2: box_loss nan, " in message
    assert ", so training stops (lr 1e+30; parameters" in message
    for text in ("class_loss nan", " loss nan", "gradient_norm nan"):
        assert text in message
    # Who clips the gradient is not told to.
    assert re.search(
        r"Lower the learning rate \([^()]*learning_rate=1e\+29[^()]*\), and look", message
    )
    assert str(tmp_path / "run/nonfinite.json") in message

    left = json.loads((tmp_path / "run/nonfinite.json").read_text())
    assert left["step"] == 2
    assert (left["values"]["loss"], left["values"]["lr"]) == ("nan", pytest.approx(1e30))
    assert left["parameters"]["not_finite"]["backbone"] > 0
    assert len(left["images"]) == 8
    source = open_voc(shapes, ("train",))
    for image in left["images"]:
        assert image["image"] in message
        example = source[list(source.names).index(image["image"])]
        height, width = example.size
        pixels = np.reshape(image["boxes_xyxy_px"], (-1, 4)) / [width, height, width, height]
        np.testing.assert_allclose(pixels, example.boxes, atol=1e-3)
        assert image["labels"] == [source.classes[label] for label in example.labels]

    told = read_metrics(tmp_path / "run/metrics.jsonl")[-1]
    assert (told["step"], told["split"], told["loss"]) == (2, "diverged", None)
    assert main(["report", "compare", str(tmp_path / "run")]) == 0
    assert "run (unfinished, diverged at step 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.train.root=nowhere", "no such file or folder"),
        ("data.val.image_sets=('vall',)", "Name one or more of val, train"),
        ("data.classes=('cross','ring')", "unknown class 'triangle'"),
        ("model.backbone=vgg61", "the nearest is vgg16"),
        ("optimiser.name=sgd", "nearest is --config.optimizer.name"),
        ("anchors.scales=(0.1,0.2)", "one for each feature map"),
        ("weights.path=nothing.safetensors", "nothing.safetensors"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(setting, message, shapes, tmp_path, capsys):
    config = write_config(tmp_path, shapes)
    arguments = ["train", "--config", str(config), "--workdir", str(tmp_path / "run")]
    assert main([*arguments, f"--config.{setting}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors__scales": (0.1, 0.2)}, "one for each feature map"),
        (
            {"augment__image_sizes": (512, 64), "model__image_size": 512},
            "an image of this size gives",
        ),
        ({"weights__path": "nothing.safetensors"}, "nothing.safetensors: no such file"),
        ({"data__val__root": " "}, r"config\.data\.val\.root: it is empty"),
        (
            {"optimizer__decay_multipliers": (("params/backbon/*", 0.0),)},
            r"config\.optimizer\.decay_multipliers: no parameter matches 'params/backbon/\*'",
        ),
    ],
)
def test_what_is_wrong_without_data_is_told_before_it_is_read(
    changes, message, shapes, tmp_path, monkeypatch
):
    monkeypatch.setattr("ssd_jax.experiment.open_data", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(UserError, match=message):
        run_training(tiny_config(shapes, **changes), tmp_path)


@pytest.mark.parametrize(
    "run", [run_training, functools.partial(run_evaluation, split=None, step=None)]
)
def test_a_script_of_ones_own_is_told_of_an_impossible_value_at_once(run, shapes, tmp_path):
    config = tiny_config(shapes, sharding="fspd", data__train__root="nowhere")
    with pytest.raises(UserError, match=r"config\.sharding: got 'fspd'.*nearest is fsdp"):
        run(config, tmp_path)


def test_a_batch_that_does_not_divide_among_the_devices_is_told_before_data_is_read(
    shapes, tmp_path, monkeypatch
):
    monkeypatch.setattr("ssd_jax.experiment.open_data", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(UserError, match="got 12, expected a multiple of the 8 devices") as error:
        run_training(tiny_config(shapes, batch_size=12), tmp_path)
    assert "use only 6 devices: JAX_NUM_CPU_DEVICES=6" in str(error.value)


def test_devices_of_a_gpu_machine_are_hidden_by_their_numbers():
    gpus = Mock(spec=Mesh, size=4, devices=np.full(4, Mock(platform="gpu")))
    with pytest.raises(UserError, match="use only 2 devices: CUDA_VISIBLE_DEVICES=0,1"):
        check_divides(10, gpus)


def test_devices_that_are_hidden_already_stay_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    gpus = Mock(spec=Mesh, size=3, devices=np.full(3, Mock(platform="gpu")))
    with pytest.raises(UserError, match=r"only 2 devices: CUDA_VISIBLE_DEVICES=5,6\."):
        check_divides(32, gpus)


def test_the_images_of_a_mosaic_are_on_one_device():
    config = default_config()
    config.augment.mosaic.probability = 0.25
    together = images_together(config)
    cpus = Mock(spec=Mesh, size=4, devices=np.full(4, Mock(platform="cpu")))
    check_divides(16, cpus, together=together)
    message = "got 8, expected a multiple of 4 images, which .* the 4 devices.* only 2 devices"
    with pytest.raises(UserError, match=message):
        check_divides(8, cpus, together=together)


def test_a_canvas_smaller_than_the_network_is_told(shapes):
    config = tiny_config(shapes, data__canvas=48)
    line = describe_data(config, {"train": build_source(config, "train")})[-1]
    assert "data.canvas = 48 px and then up again to model.image_size = 64" in line


def test_a_cache_that_does_not_fit_is_refused(shapes, tmp_path):
    config = tiny_config(shapes, data__cache="ram", data__canvas=2_000_000)
    with pytest.raises(UserError, match=r"'ram' needs 2\d{5}\.\d GiB of memory; expected at most"):
        run_training(config, tmp_path, mesh=make_mesh(jax.devices()[:1]))


def write_config(folder, shapes):
    file = folder / "config.py"
    file.write_text(
        "from tiny import tiny_config\n"
        "import pathlib\n"
        f"def get_config():\n    return tiny_config(pathlib.Path({str(shapes)!r}))\n"
    )
    return file


def test_a_dry_run_tells_what_is_known_before_the_first_step(shapes, tmp_path, capsys, monkeypatch):
    source = "ssd_jax.data.sources.base.Source"
    monkeypatch.setattr(f"{source}.__getitem__", lambda *_: pytest.fail("was read"))
    config = write_config(tmp_path, shapes)
    before = sorted(tmp_path.iterdir())
    command = ["train", "--config", str(config), "--config.optimizer.learning_rate=0.01"]
    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "config.steps = 6" in told
    assert "config.optimizer.learning_rate = 0.01  # recipe: 0.001" in told
    for line in ("train: 20 images", "network: vgg16, 64 px", "steps: 6", "warning: the learning",
                 "memory per device: "):  # fmt: skip
        assert any(each.startswith(line) for each in told), line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", ["--change steps", "--time-limit 3h"])
def test_a_dry_run_refuses_what_it_would_ignore(words, shapes, tmp_path, capsys):
    command = ["train", "--config", str(write_config(tmp_path, shapes)), "--dry-run"]
    assert main([*command, *words.split()]) == 2
    assert (
        f"{words.split()[0]} cannot be used with --dry-run. Leave it out" in capsys.readouterr().err
    )


def test_a_dry_run_looks_whether_the_devices_hold_the_cache(shapes, tmp_path, monkeypatch, capsys):
    def refuse(config, source, mesh):
        raise UserError("too large")

    monkeypatch.setattr(before_training, "describe_cache", refuse)
    command = ["train", "--config", str(write_config(tmp_path, shapes)), "--dry-run"]
    assert main([*command, "--config.data.cache=device"]) == 2
    assert "too large" in capsys.readouterr().err


def test_without_a_dry_run_a_workdir_is_needed(shapes, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config", str(write_config(tmp_path, shapes))])
    assert "arguments are required: --workdir" in capsys.readouterr().err


def test_a_workdir_that_is_a_file_is_told(shapes, tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments = ["train", "--config", str(write_config(tmp_path, shapes)), "--workdir"]
    assert main([*arguments, str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_a_folder_where_a_run_trains_is_refused(shapes, tmp_path):
    with only_training(tmp_path, "it"), pytest.raises(UserError, match="another process"):
        run_training(tiny_config(shapes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_drawing_never_overwrites_its_picture(tiny_run, tmp_path, capsys):
    picture = tmp_path / "photo.png"
    cv2.imwrite(str(picture), np.zeros((64, 64, 3), np.uint8))
    before = picture.read_bytes()
    command = ["predict", "--workdir", str(tiny_run), str(picture), "--out", str(tmp_path)]
    assert main(command) == 2
    assert "overwrite" in capsys.readouterr().err
    assert picture.read_bytes() == before
