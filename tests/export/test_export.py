"""A run becomes one folder; any engine opens it and finds what the run's own detector finds."""

import json
import pathlib
import re
import shutil
from importlib.util import find_spec

import jax
import numpy as np
import pytest
import safetensors.numpy

from ssd_jax.cli import main
from ssd_jax.commands import common
from ssd_jax.config import read_config, save_config
from ssd_jax.data.decode import decode_image
from ssd_jax.detector import Detector
from ssd_jax.errors import UserError
from ssd_jax.export import engines, verify, write
from ssd_jax.export.exported import open_exported
from ssd_jax.export.folder import ANCHORS, META, ONNX, PROBE, STABLEHLO, describe_files, read_folder
from ssd_jax.locks import held
from ssd_jax.types import Detections

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(not find_spec(name), reason=f"{name} is missing"))
    for name in ("onnxruntime", "openvino")
]
WITH_ONNX = find_spec("onnx") is not None


@pytest.fixture(scope="module")
def model(tiny_run, tmp_path_factory) -> pathlib.Path:
    """Exported by the command, with its check in another process.

    The run it is exported from differs from `tiny_run` in the sizes that it looks at pictures in.
    """
    out = tmp_path_factory.mktemp("export") / "model"
    run = shutil.copytree(tiny_run, out.parent / "run")
    config = read_config(run / "config.json")
    config.detect.image_sizes = (64, 96)
    save_config(config, run / "config.json")
    words = ["export", "--workdir", str(run), "--out", str(out), *(["--onnx"] * WITH_ONNX)]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def pictures(shapes):
    return [path.read_bytes() for path in sorted((shapes / "JPEGImages").iterdir())[-3:]]


@pytest.fixture(scope="module")
def expected(tiny_run, pictures):
    return Detector.load(tiny_run)(pictures)


@pytest.fixture
def damaged(model, tmp_path):
    """A copy of the folder, and how to make it say that its files are as they were written."""
    copy = shutil.copytree(model, tmp_path / "model")

    def seal():
        meta = json.loads((copy / META).read_text())
        (copy / META).write_text(json.dumps(meta | {"files": describe_files(copy)}))

    return copy, seal


def found_by(exported, pictures):
    decoded = [decode_image(data, "test", exported.canvas) for data in pictures]
    return exported.predict(
        np.stack([canvas for canvas, _, _ in decoded]),
        np.array([extent for _, extent, _ in decoded], np.int32),
    )


def assert_same(found, expected):
    assert all(isinstance(array, np.ndarray) for array in found)
    for row, theirs in enumerate(expected):
        ours = Detections(*(array[row] for array in found))
        verify.compare(theirs, ours, score_threshold=0.01, max_detections=20)


def test_the_archive_and_the_engine_jax(model, pictures, expected):
    exported = open_exported(f"{model}.tar.gz", engine="jax")
    assert (exported.engine, exported.canvas) == ("jax", 64)
    assert exported.classes == ("cross", "ring", "triangle")
    found = found_by(exported, pictures)
    assert_same(found, expected)
    assert found.valid.sum() > 10


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engines_that_read_onnx(model, pictures, expected, engine):
    exported = open_exported(model, engine=engine)
    assert exported.engine == engine
    assert_same(found_by(exported, pictures), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_that_read_onnx_do_not_build_the_network(model, engine, monkeypatch):
    def build(*args):
        raise AssertionError("tracing a network takes as long as reading one")

    monkeypatch.setattr(engines, "build_network", build)
    assert open_exported(model, engine=engine).engine == engine


def test_it_is_called_as_the_detector_of_a_run_is(model, pictures, expected):
    found = open_exported(model, engine="jax")(pictures)
    assert [len(each.scores) for each in found] == [len(each.scores) for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        verify.compare(theirs, ours, score_threshold=0.01, max_detections=20)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_picture_waits_for_no_compilation(model, pictures, engine, caplog):
    exported = open_exported(model, engine=engine)
    with jax.log_compiles():
        exported(pictures[:1])
        assert not caplog.messages
        found_by(exported, pictures)  # three at once
        assert caplog.messages


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="onnxruntime is missing")
def test_engines_on_the_processor_work_where_jax_has_a_gpu_only(model, pictures, monkeypatch):
    def local_devices(backend):
        raise RuntimeError(f"Unknown backend {backend}")  # with JAX_PLATFORMS=cuda

    monkeypatch.setattr(engines.jax, "local_devices", local_devices)
    monkeypatch.setattr(engines.jax, "default_backend", lambda: "gpu")
    found = found_by(open_exported(model, engine="onnxruntime"), pictures)
    assert found.valid.sum() > 10


@pytest.mark.skipif(not WITH_ONNX, reason="the extra onnx is not installed")
@pytest.mark.parametrize("array", [{"boxes": np.zeros((3, 4))}, {"anchors": np.zeros((3, 5))}])
def test_anchors_that_are_none_are_refused(damaged, array):
    folder, seal = damaged
    safetensors.numpy.save_file(array, folder / ANCHORS)
    seal()
    with pytest.raises(UserError, match=r"anchors\.safetensors holds no anchors"):
        open_exported(folder)


def test_meta_says_what_it_is_and_how_it_was_checked(model, tiny_run):
    meta = read_folder(model).meta
    report = json.loads((tiny_run / "report.json").read_text())
    assert meta["metrics"] == report["metrics"]
    assert meta["protocol"]["split"] == "val"
    assert (meta["step"], meta["recipe"], meta["image_size"]) == (6, "paper", 64)
    assert (meta["measured_at"], meta["detect"]["image_sizes"]) == ([64, 96], [])
    assert meta["fingerprints"]["train"] == report["data"]["train"]["fingerprint"]
    assert meta["verification"]["pictures"] == "8 images of the validation split"
    assert meta["verification"]["detections"] > 10
    forms = {"stablehlo", "jax"} | {name for name in ("onnxruntime", "openvino")
                                    if WITH_ONNX and find_spec(name)}  # fmt: skip
    assert meta["verification"]["found"].keys() == forms
    assert all(each["largest_deviation"] < 1e-4 for each in meta["verification"]["found"].values())
    # An exported detector travels: it tells nothing of the machine that it was made on.
    assert str(tiny_run.parent) not in (model / META).read_text()


def test_stablehlo_needs_nothing_of_this_package(model):
    program = jax.export.deserialize(bytearray((model / STABLEHLO).read_bytes()))
    weights = safetensors.numpy.load_file(model / "weights.safetensors")
    assert program.platforms == ("cpu", "cuda")
    (words, canvas, extent), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    assert {name: aval.shape for name, aval in words.items()} == {
        name: array.shape for name, array in weights.items()
    }
    assert [str(aval) for aval in (canvas, extent)] == ["uint8[batch,64,64,3]", "int32[batch,2]"]


@pytest.mark.skipif(not WITH_ONNX, reason="the extra onnx is not installed")
def test_the_numpy_of_the_documentation_decodes_the_onnx_model(model, expected, pictures):
    text = (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text()
    code = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
                if "onnxruntime" in code)  # fmt: skip
    canvas, (height, width), _ = decode_image(pictures[0], "test", 64)
    scope = {"picture": canvas[:height, :width]}
    exec(code.replace("model/", f"{model}/").replace("(512, 512)", "(64, 64)"), scope)
    best = expected[0]
    anchor = int(np.argmax(scope["probabilities"][0, :, 1 + best.labels[0]]))
    np.testing.assert_allclose(scope["boxes"][anchor], best.boxes[0], atol=1e-4)


@pytest.fixture
def tried(monkeypatch):
    """Engines that pass, and take so many seconds here; the names of those that were tried."""
    seconds = {"jax": 0.3, "onnxruntime": 0.2, "openvino": 0.1, "openvino-bf16": 0.05}
    names = []

    def engine(name, parts):
        names.append(name)
        return engines.Engine(name, lambda images: None)

    monkeypatch.setattr(engines, "_tried", engine)
    monkeypatch.setattr(engines, "seconds_an_image", lambda engine, folder: seconds[engine.name])
    return names


def exported_elsewhere(model, **found):
    folder = read_folder(model)
    folder.meta["verification"] = {"processor": "another", "found": found}
    return folder


def test_auto_takes_the_fastest_that_passes_in_full_precision(model, tried):
    exported = open_exported(exported_elsewhere(model))
    assert exported.engine == "openvino"
    assert exported.why == (
        "the fastest here: openvino 100 ms per image; onnxruntime 200 ms per image; "
        "jax 300 ms per image"
    )


def test_auto_leaves_out_what_found_something_else_at_export(model, tried):
    folder = exported_elsewhere(model, openvino={"refused": "3 detections differ"})
    exported = open_exported(folder)
    assert exported.engine == "onnxruntime"
    assert "openvino is excluded: 3 detections differ; onnxruntime 200 ms" in exported.why
    assert open_exported(folder, "openvino").why == "it was chosen by name"


def test_auto_times_nothing_that_the_export_timed_on_such_a_processor(model, tried):
    found = {"jax": 0.2, "onnxruntime": 0.1, "openvino": 0.3}
    folder = exported_elsewhere(model, **{name: {"seconds": s} for name, s in found.items()})
    folder.meta["verification"]["processor"] = engines.processor()
    exported = open_exported(folder)
    assert (exported.engine, tried) == ("onnxruntime", ["onnxruntime"])
    assert exported.why.startswith("the fastest on this CPU, measured by the export: ")
    assert "jax 200 ms" in exported.why

    folder.meta["verification"]["found"]["onnxruntime"] = {"refused": "it differs"}
    exported = open_exported(folder)
    assert exported.engine == "jax"
    assert "onnxruntime is excluded: it differs; " in exported.why

    del folder.meta["verification"]["found"]["jax"]  # so it has to be timed
    assert open_exported(folder).why.startswith("the fastest here: ")


def test_auto_goes_on_where_the_fastest_of_the_export_fails_here(model, tried, monkeypatch):
    found = {"jax": 0.2, "onnxruntime": 0.1, "openvino": 0.3}
    folder = exported_elsewhere(model, **{name: {"seconds": s} for name, s in found.items()})
    folder.meta["verification"]["processor"] = engines.processor()
    passes = engines._tried

    def fails(name, parts):
        if name == "onnxruntime":
            raise UserError("it fails\nthe probe")
        return passes(name, parts)

    monkeypatch.setattr(engines, "_tried", fails)
    exported = open_exported(folder)
    assert exported.engine == "jax"
    assert "onnxruntime is excluded: it fails the probe" in exported.why


def test_auto_tries_jax_alone_without_an_onnx_model(model, tried):
    folder = read_folder(model)
    folder.files.pop(ONNX, None)
    assert open_exported(folder).why == "the others need model.onnx, which is not in the folder"
    assert tried == ["jax"]


def test_an_engine_is_timed_on_the_images_of_the_folder(model):
    assert 0 < open_exported(model, "jax").seconds_an_image() < 60


def test_an_engine_that_computes_something_else_is_refused(damaged):
    folder, seal = damaged
    probe = safetensors.numpy.load_file(folder / PROBE)
    probe["probabilities"][0, 0, 0] += 2e-4
    safetensors.numpy.save_file(probe, folder / PROBE)
    seal()
    with pytest.raises(UserError, match=r"engine jax, boxes or scores differ .* by 0.0002"):
        open_exported(folder, engine="jax")


def test_weights_of_another_network_are_refused(damaged):
    folder, seal = damaged
    weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    del weights["params/heads/box_0/kernel"]
    safetensors.numpy.save_file(weights, folder / "weights.safetensors")
    seal()
    with pytest.raises(UserError, match="MISSING in the file: 1"):
        open_exported(folder, engine="jax")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_onnx_model_is_refused(damaged, engine):
    folder, seal = damaged
    (folder / ONNX).write_bytes(b"no model")
    seal()
    with pytest.raises(UserError, match=f"{engine} cannot run it"):
        open_exported(folder, engine=engine)


def test_unknown_engines_are_refused(model):
    with pytest.raises(UserError, match="got 'tensorrt', expected one of auto, openvino"):
        open_exported(model, engine="tensorrt")


def test_predict_knows_the_engines_before_it_reads_a_model(capsys):
    assert set(common.ENGINES) == {"auto", *engines._BUILDERS}
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--model", "m", "--engine", "tensorrt", "photo.jpg", "--out", "o"])
    assert "argument --engine: 'tensorrt' is not one of auto, jax" in capsys.readouterr().err


def test_predict_tells_its_engine_and_why(model, pictures, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(pictures[0])
    words = ["--engine", "jax", str(tmp_path / "photo.jpg"), "--out", str(tmp_path / "found")]
    assert main(["predict", "--model", str(model), *words]) == 0
    assert "engine jax: it was chosen by name" in capsys.readouterr().out.splitlines()


def test_the_check_finds_a_difference(model, pictures, expected, tmp_path, capsys):
    decoded = [decode_image(data, "test", 64) for data in pictures[:2]]
    moved = [found._replace(boxes=found.boxes + np.float32(2e-4)) for found in expected[:2]]
    canvas, extent = (np.array([each[field] for each in decoded]) for field in (0, 1))
    verify.write_cases(tmp_path / "cases", canvas, extent.astype(np.int32), moved)
    assert verify.main(str(model), str(tmp_path / "cases")) == 1
    assert "stablehlo, image 0" in capsys.readouterr().err


def test_a_move_that_fails_tells_why_and_leaves_nothing_of_it(tiny_run, tmp_path, monkeypatch):
    model = tmp_path / "model"

    def write_files(new, *args, **words):
        (new / PROBE).touch()
        return {}

    def verified(*args):
        (model / META / "of another").mkdir(parents=True)
        return {}

    monkeypatch.setattr(write, "_write_files", write_files)
    monkeypatch.setattr(write, "_verified", verified)
    monkeypatch.setattr(write.files, "read_folder", lambda path: None)
    with pytest.raises(IsADirectoryError):
        write.export_run(tiny_run, model)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", META, "of another"]


def test_an_archive_may_be_left_out(tiny_run, tmp_path, monkeypatch, capsys):
    checked = {"pictures": "8, drawn", "detections": 9, "found": {}}
    monkeypatch.setattr(write, "_write_files", lambda *args, **words: {})
    monkeypatch.setattr(write, "_verified", lambda *args: checked)
    words = ["--workdir", str(tiny_run), "--out", str(tmp_path / "model"), "--no-archive"]
    assert main(["export", *words]) == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["model", META]
    assert ".tar.gz" not in capsys.readouterr().out


@pytest.mark.parametrize("at_work", [False, True])
def test_what_a_killed_export_left_is_removed_and_the_work_of_another_is_not(
    at_work, tiny_run, tmp_path, monkeypatch
):
    out = tmp_path / "model"
    (out / ".unfinished-x/model").mkdir(parents=True)
    (out / ".unfinished-x/model/weights.safetensors").touch()
    monkeypatch.setattr(write, "_write_files", lambda *args, **words: {})
    monkeypatch.setattr(write, "_verified", lambda *args: {})
    if at_work:
        with held(out / ".unfinished-x"), pytest.raises(UserError, match="exists already"):
            write.export_run(tiny_run, out, archive=False)
        assert (out / ".unfinished-x/model/weights.safetensors").is_file()
    else:
        write.export_run(tiny_run, out, archive=False)
        assert [path.name for path in out.iterdir()] == [META]


def test_a_failed_check_leaves_nothing(tiny_run, tmp_path, monkeypatch):
    def fails(*args):
        raise UserError("found something else")

    monkeypatch.setattr(write, "_write_files", lambda *args, **words: {})
    monkeypatch.setattr(write, "_verified", fails)
    with pytest.raises(UserError, match="found something else"):
        write.export_run(tiny_run, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["x.tar.gz", "s3://bucket/x.tar.gz"])
def test_a_detector_is_not_called_as_its_archive(out, tiny_run):
    with pytest.raises(
        UserError, match=r"expected the name of a folder. Give --out \S*x; the archive"
    ):
        write.export_run(tiny_run, out)


def test_nothing_is_overwritten(tiny_run, model):
    with pytest.raises(UserError, match="exists already"):
        write.export_run(tiny_run, model)
