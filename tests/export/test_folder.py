"""Reading an exported detector: only what was written, whole, and nothing that is run."""

import json
import sys
import tarfile

import numpy as np
import pytest
import safetensors.numpy

from ssd_jax.config import default_config
from ssd_jax.errors import UserError
from ssd_jax.export.engines import find_candidates, installed_engines
from ssd_jax.export.exported import open_exported
from ssd_jax.export.folder import (
    META,
    ONNX,
    PROBE,
    SCHEMA_VERSION,
    SECTIONS,
    WEIGHTS,
    describe_files,
    read_folder,
    write_archive,
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    arrays = {"images": np.zeros((1, 64, 64, 3), np.uint8), "box_deltas": np.zeros((1, 2, 4))}
    arrays["probabilities"] = np.zeros((1, 2, 3))
    (folder / PROBE).write_bytes(safetensors.numpy.save(arrays))
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save({"params/a": np.arange(3.0)}))
    write_meta(folder)
    return folder


def write_meta(folder, **changes):
    config = default_config()
    meta = {
        "schema_version": SCHEMA_VERSION,
        "classes": ["cat", "dog"],
        "canvas": 320,
        **{name: config[name].to_dict() for name in SECTIONS},
        "files": describe_files(folder),
    }
    (folder / META).write_text(json.dumps(meta | changes))


def test_folder_and_archive_hold_the_same(folder, tmp_path):
    write_archive(folder, tmp_path / "model.tar.gz")
    for source in (folder, tmp_path / "model.tar.gz"):
        read = read_folder(source)
        assert read.classes == ("cat", "dog")
        assert read.weights()["params/a"].tolist() == [0, 1, 2]
        assert [array.shape for array in read.probe()] == [(1, 64, 64, 3), (1, 2, 4), (1, 2, 3)]
        assert read.config().data.canvas == 320
        assert read.config().detect == default_config().detect


def test_equal_folders_give_equal_archives(folder, tmp_path):
    for name in ("a", "b"):
        write_archive(folder, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_not_listed_is_not_read(folder):
    (folder / "model.onnx").write_bytes(b"not of the export")
    with pytest.raises(UserError, match=r"has no model.onnx.*--onnx"):
        read_folder(folder).file("model.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "weights.safetensors is missing"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"x"), "is not the file that was exported"),
        (lambda folder: (folder / META).unlink(), "is not an exported detector"),
        (lambda folder: (folder / META).write_text("[" * 100_000), "is not JSON"),
        (lambda folder: (folder / META).write_text("[]"), "schema version None, expected 1"),
        (lambda folder: write_meta(folder, schema_version=2), "schema version 2, expected 1"),
        (lambda folder: write_meta(folder, schema_version=True), "schema version True, expected"),
        (lambda folder: write_meta(folder, classes=[]), "lacks classes"),
        (lambda folder: write_meta(folder, canvas=True), "lacks classes, canvas"),
        (
            lambda folder: write_meta(folder, verification=[]),
            "the verification in meta.json lacks the results",
        ),
        (
            lambda folder: write_meta(folder, verification={"found": {"jax": 5}}),
            "the verification in meta.json lacks the results",
        ),
        (lambda folder: write_meta(folder, files={"../secret": {}}), "or the list of files"),
        (lambda folder: (folder / META).write_bytes(b" " * (2**24 + 1)), "more than 16,777,216"),
    ],
)
def test_damaged_folders_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_folder(folder)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"backbone": "alexnet"}}, "config.model.backbone: got 'alexnet'"),
        ({"model": {"image_size": 100_000}}, "a side of more than 8192 px"),
        ({"model": {"batch_norm_group": -1}}, "config.model.batch_norm_group: got -1"),
        ({"model": {"class_activation": "tanh"}}, "config.model.class_activation: got 'tanh'"),
        ({"canvas": -1}, "config.data.canvas: got -1"),
        ({"detect": {"score_threshold": 10**400}}, "in meta.json: int too large"),
        ({"detect": {"image_sizes": [300, 10**6]}}, "a side of more than 8192 px"),
        ({"detect": {"max_detections": 10**12}}, "more than 100,000 detections"),
        (
            {"detect": {"max_detections": True}},
            "detect.max_detections: got True, expected a number",
        ),
        ({"detect": {"no_such_word": 1}}, "no_such_word"),
        ({"preprocess": {"mean": "x"}}, "preprocess.mean|mean"),
    ],
)
def test_impossible_settings_are_refused(folder, section, message):
    write_meta(folder, **section)
    with pytest.raises(UserError, match=message):
        read_folder(folder).config()


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_activation", "sigmoid"), ("batch_norm_group", 12), ("batch_norm_group", 0)],
)
def test_what_suits_a_training_with_other_settings_is_read(folder, name, value):
    write_meta(folder, model={name: value})
    assert read_folder(folder).config().model[name] == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "notes.txt",
            r"is not an exported detector; it contains .*notes\.txt.*`ssd-jax export` wrote",
        ),
        (
            "model_algo_1-0000.params",
            r"it contains .*\.params.*`ssd-jax weights import`.*`ssd-jax ex",
        ),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_what_holds_no_detector_is_not_called_damaged(name, message, packed, tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    (source / name).touch()
    if packed:
        write_archive(source, tmp_path / "model.tar.gz")
        source = tmp_path / "model.tar.gz"
    with pytest.raises(UserError, match=message) as error:
        read_folder(source)
    assert "damaged" not in str(error.value)


def test_the_class_of_an_own_backbone_is_named_and_never_imported(folder):
    write_meta(folder, model={"backbone": "antigravity:Net"})
    with pytest.raises(UserError, match="antigravity:Net, and code that a file names"):
        open_exported(folder)
    assert "antigravity" not in sys.modules
    read = read_folder(folder)
    read = read._replace(files=read.files | {ONNX: memoryview(b"")})
    assert set(find_candidates("auto", read).names) == {"onnxruntime", "openvino"}
    assert "jax" not in installed_engines(read)


@pytest.mark.parametrize("classes", [["cat"], ["cat", "dog", "hen"]])
def test_classes_that_the_network_does_not_have_are_refused(folder, classes):
    write_meta(folder, classes=classes)
    message = rf"has {len(classes)} classes, .* shape \(1, 2, 3\), expected {len(classes) + 1} chan"
    with pytest.raises(UserError, match=message):
        read_folder(folder).probe()


def test_a_pickle_is_no_weights(folder):
    (folder / WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    write_meta(folder)
    with pytest.raises(UserError, match=r"damaged: weights\.safetensors"):
        read_folder(folder).weights()


def test_an_archive_writes_nothing_under_its_names(folder, tmp_path):
    packed = tmp_path / "model.tar"
    with tarfile.open(packed, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in folder.iterdir():
            tar.add(path, f"../../{path.name}")
    before = sorted(tmp_path.rglob("*"))
    assert read_folder(packed).classes == ("cat", "dog")
    assert sorted(tmp_path.rglob("*")) == before
