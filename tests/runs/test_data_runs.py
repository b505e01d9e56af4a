"""Data of any format through a whole run, and the verbs that look at it and rewrite it."""

import json
import shlex
import shutil
import socket
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from tiny import tiny_config

from ssd_jax import experiment
from ssd_jax.cli import build_parser, main
from ssd_jax.data import codes
from ssd_jax.data.pipeline import cache_bytes
from ssd_jax.errors import DataError, UserError
from ssd_jax.runs import training_data
from ssd_jax.runs.before_training import open_sources
from ssd_jax.runs.describe_data import describe_data, doctor_command
from ssd_jax.runs.log import read_metrics
from ssd_jax.runs.outcome import data_report
from ssd_jax.runs.training import run_training
from ssd_jax.runs.training_data import describe_cache, device_cache_bytes
from ssd_jax.sharding import make_mesh


@pytest.fixture(scope="module")
def record_files(shapes, tmp_path_factory):
    """The shapes as RecordIO."""
    folder = tmp_path_factory.mktemp("records")
    for split in ("train", "val"):
        destination = str(folder / f"{split}.rec")
        assert main(["convert", str(shapes), destination, "--split", split]) == 0
    return folder


def test_records_on_the_device_train_as_the_folder_did(tiny_run, shapes, record_files, tmp_path):
    changes = {"data__cache": "device"}
    for split in ("train", "val"):
        changes[f"data__{split}__root"] = str(record_files / f"{split}.rec")
    run_training(tiny_config(shapes, **changes), tmp_path, mesh=make_mesh(jax.devices()[:1]))

    def numbers(workdir):
        records = read_metrics(workdir / "metrics.jsonl")
        return [(r["step"], r.get("loss"), r.get("map_voc07")) for r in records]

    assert numbers(tmp_path) == numbers(tiny_run)
    data = json.loads((tmp_path / "report.json").read_text())["data"]
    assert {split: data[split]["images"] for split in data} == {"train": 20, "val": 12}
    # The config names the splits "train" and "val", which files do not have.
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"]["image_sets"] == []


def test_the_cache_asks_the_devices_of_its_own_process_for_memory(shapes):
    own = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1000})
    mesh = Mock(spec=Mesh, size=2, local_devices=[own])
    config = tiny_config(shapes, data__cache="device")
    source = experiment.build_source(config, "train")
    with pytest.raises(
        UserError, match=r"of 2 devices; expected at most .* in addition to what a step"
    ):
        describe_cache(config, source, mesh)
    own.memory_stats = dict
    assert describe_cache(config, source, mesh).endswith("MiB, in addition to what a step needs")


def test_what_the_device_cache_takes_is_not_there_for_the_step(shapes):
    mesh = Mock(spec=Mesh, size=2)
    config = tiny_config(shapes, data__cache="device")
    source = experiment.build_source(config, "train")
    assert device_cache_bytes(config, source, mesh) >= 20 * 3 * config.data.canvas**2 / 2
    config.data.cache = "ram"
    assert device_cache_bytes(config, source, mesh) == 0


def test_processes_of_a_host_share_its_memory_for_their_copies(shapes, monkeypatch):
    hosts = [socket.gethostname(), "other", socket.gethostname()]
    monkeypatch.setattr(training_data, "exchange", lambda host: hosts)
    config = tiny_config(shapes, data__cache="ram")
    source = experiment.build_source(config, "train")
    one = cache_bytes(source, canvas=config.data.canvas)
    monkeypatch.setattr(training_data, "memory_bytes", lambda: 2 * one)
    assert "a copy for each of 2 processes" in describe_cache(config, source, make_mesh())
    monkeypatch.setattr(training_data, "memory_bytes", lambda: 2 * one - 1)
    with pytest.raises(UserError, match="a copy for each of 2 processes on a host; expected at"):
        describe_cache(config, source, make_mesh())


def test_a_damaged_image_is_refused_before_the_run_or_left_out(shapes, tmp_path):
    folder = tmp_path / "shapes"
    shutil.copytree(shapes, folder)
    first = (folder / "ImageSets/Main/train.txt").read_text().split()[0]
    (image,) = folder.glob(f"JPEGImages/{first}.*")
    image.write_bytes(image.read_bytes()[:-50])
    with pytest.raises(UserError, match=rf"(?s)SSD112.*{first}.*ssd-jax doctor.*skip"):
        experiment.build_source(tiny_config(folder), "train")
    source = experiment.build_source(tiny_config(folder, data__problems="skip"), "train")
    assert len(source) == 19
    report = data_report(source)
    assert (report["images"], report["left_out"]) == (19, {"SSD112": 1})
    assert first in report["left_out_because"][0]


def test_the_first_mistake_in_annotations_says_how_to_see_all(shapes):
    config = tiny_config(shapes)
    command = f"`ssd-jax doctor {shapes} --split val --classes ring`"
    advice = "shows all that cannot be used, and --config.data.problems=skip leaves it out$"
    with pytest.raises(DataError, match=f"SSD134 .* config.data.classes .*{command} {advice}"):
        experiment.build_source(config, "val", classes=("ring",))


def test_a_run_tells_what_the_doctor_warns_of(shapes):
    classes = ("cross", "ring", "triangle", "lamp")
    config = tiny_config(shapes, data__classes=classes)
    source = experiment.build_source(config, "train")
    summary, warning = describe_data(config, {"train": source})
    assert summary.startswith("train: 20 images")
    assert warning.startswith("train: doctor warnings: ")
    assert " SSD179 (class without objects)" in warning
    assert "1 x " not in warning
    source.findings = {"SSD174": 1234, "SSD178": 1}
    _, warning = describe_data(config, {"train": source})
    told = "warnings: 1,234 x SSD174 (duplicate image), SSD178 (images without objects); "
    assert told in warning
    command = f"ssd-jax doctor {shapes} --split train --classes cross,ring,triangle,lamp"
    assert f"`{command}` shows them" in warning
    config.data.doctor = False
    source = experiment.build_source(config, "train")
    assert describe_data(config, {"train": source}) == [summary]


def test_what_is_left_out_is_told_with_an_example_and_loudly_if_it_is_much(shapes):
    source = experiment.build_source(tiny_config(shapes, data__doctor=False), "train")
    given = codes.IMAGE_MISSING, codes.ANNOTATION_MISSING, codes.IMAGE_UNREADABLE
    found = [DataError(code, f"{code[-1]}.jpg", "it is broken", "Mend it") for code in given]
    box = DataError(codes.BOX_OUTSIDE, "3.jpg, object 1", "it is " + 999 * "far ", "Mend it")
    source.problems.found = [box] * 30 + found[2:]
    _, line, *examples = describe_data(tiny_config(shapes), {"train": source})
    assert line.startswith("train: 1 of 21 images are left out (4.8%)")
    assert examples[0] == "train: 1 SSD112, first: 2.jpg: it is broken"
    assert examples[1].startswith("train: 30 SSD132, first: 3.jpg, object 1: it is far far")
    assert len(examples[1]) < 250
    # A name that is misspelt in an annotation makes two findings of an image.
    source.problems.found = found[:2] * 2 + found[2:]
    _, line, *_ = describe_data(tiny_config(shapes), {"train": source})
    assert line.startswith("warning: train: 3 of 23 images are left out (13.0%)")


def test_images_of_the_training_among_those_of_the_measurement_are_told(shapes):
    config = tiny_config(shapes, data__test__root=str(shapes), data__test__image_sets=("train",))
    sources = {name: experiment.build_source(config, name) for name in ("train", "val", "test")}
    told = describe_data(config, sources)
    (leak,) = (line for line in told if "byte for byte" in line)
    assert leak.startswith("warning: 20 of the 20 images of test are also in train")
    assert f"--split train --against {shapes} --against-split train` names them" in leak


def test_nothing_left_is_told(shapes, tmp_path):
    folder = tmp_path / "shapes"
    shutil.copytree(shapes, folder)
    for image in (folder / "JPEGImages").iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"SSD103 config\.data\.train\.root.*0 images"):
        experiment.build_source(tiny_config(folder, data__problems="skip"), "train")


def test_several_data_sets_are_one(shapes):
    both = tiny_config(shapes, data__train__root=f"{shapes} + {shapes}", data__doctor=False)
    assert len(experiment.build_source(both, "train")) == 40


def test_the_recommended_command_keeps_a_class_with_a_comma_in_its_name(shapes):
    classes = ("traffic light, red", "dog")
    command = doctor_command(tiny_config(shapes), "train", classes)
    options = build_parser().parse_args(shlex.split(command)[1:])
    assert tuple(options.classes) == classes


@pytest.mark.parametrize(
    "decides",
    [{"checkpoint__select": "best"}, {"early_stopping__enabled": True}],
    ids=["select", "early stopping"],
)
def test_a_run_that_its_metric_decides_needs_objects_that_count(shapes, decides):
    config = tiny_config(shapes, **{"checkpoint__select": "last", "data__doctor": False} | decides)
    source = experiment.build_source(config, "val")
    columns = source.annotations
    nothing = columns._replace(offsets=columns.offsets * 0, difficult=columns.difficult[:0])
    difficult = columns._replace(difficult=np.ones_like(columns.difficult))
    for annotations, reason in ((difficult, "every object is difficult"), (nothing, "no objects")):
        source.annotations = annotations
        with pytest.raises(UserError, match=f"the val split gives no metric: {reason}. Give"):
            open_sources(config, {"val": source})


def test_the_setting_of_a_path_that_does_not_exist_is_told(shapes):
    config = tiny_config(shapes, data__val__root=str(shapes / "moved"))
    with pytest.raises(DataError, match=r"^SSD101 .*The path is --config\.data\.val\.root$"):
        experiment.build_source(config, "val")


def test_a_path_inside_of_a_data_set_is_not_taken_for_the_setting(tmp_path):
    (tmp_path / "data.yaml").write_text("{train: images/none, names: [cat]}")
    config = tiny_config(tmp_path)
    with pytest.raises(DataError, match=r"^SSD101 .*images/none: .*Correct the path$"):
        experiment.build_source(config, "train")


def test_the_doctor_tells_by_its_exit_code(shapes, tmp_path, capsys):
    sound = ["doctor", str(shapes), "--split", "train"]
    assert main([*sound, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "doctor.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "doctor.json").read_text())["errors"] == 0
    capsys.readouterr()
    assert main([*sound, "--against-split", "train"]) == 3
    assert "20" in capsys.readouterr().out
