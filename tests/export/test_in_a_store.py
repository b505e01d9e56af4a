"""Exported detectors and reports in an object store: as in a folder, and never a part of one."""

import json
import pathlib

import jax
import numpy as np
import pytest
from s3_server import serve_s3

from ssd_jax.cli import build_parser, main
from ssd_jax.config import read_config
from ssd_jax.data import remote, storage
from ssd_jax.data.decode import decode_image
from ssd_jax.detector import Detector, load_trained
from ssd_jax.errors import UserError
from ssd_jax.export import write
from ssd_jax.export.exported import open_exported
from ssd_jax.export.folder import META, PROBE, STABLEHLO, WEIGHTS, read_folder
from ssd_jax.export.verify import compare
from ssd_jax.importing import start_from
from ssd_jax.sharding import make_mesh
from ssd_jax.types import Detections

RUN, MODEL = "s3://bucket/runs/tiny", "s3://bucket/models/tiny"
CHECKED = {"pictures": "8, drawn", "detections": 9, "found": {}}


@pytest.fixture(scope="module")
def bucket(tiny_run, tmp_path_factory):
    """The folder of a bucket that holds the run."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with (
        serve_s3(folder, filled_by_hand=False) as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("SSD_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(storage, "PAUSE", 0.01)
        storage.upload(tiny_run, RUN)
        yield folder / "bucket"


@pytest.fixture(scope="module")
def sent(bucket):
    """The addresses that the export of the run was sent to, in their order.

    It is not checked in another process, which knows nothing of stores and takes its time.
    """
    targets, put = [], remote.Bucket.put

    def noted(store, path, url):
        targets.append(url)
        put(store, path, url)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote.Bucket, "put", noted)
        patch.setattr(write, "_verified", lambda *_: CHECKED)
        assert main(["export", "--workdir", RUN, "--out", f"{MODEL}/"]) == 0
    return targets


@pytest.fixture
def hasty_export(monkeypatch):
    """Exports that are not checked, of hardly a file."""
    monkeypatch.setattr(write, "_write_files", lambda new, *_, **__: (new / PROBE).touch() or {})
    monkeypatch.setattr(write, "_verified", lambda *_: {})
    monkeypatch.setattr(write.files, "read_folder", lambda _: None)


@pytest.fixture
def picture(shapes):
    return sorted((shapes / "JPEGImages").iterdir())[-1]


def names_below(bucket, place):
    return {path.name for path in bucket.glob(f"{place}*/*")}


def put_text(tmp_path, text, url):
    (tmp_path / "text").write_text(text)
    storage.upload(tmp_path / "text", url)


def test_a_training_may_begin_with_a_run_in_a_store(bucket, tiny_run):
    trained = load_trained(
        read_config(tiny_run / "config.json"), tiny_run, mesh=make_mesh(jax.devices()[:1])
    )
    empty = jax.tree.map(np.zeros_like, trained.variables)
    variables, report = start_from(empty, RUN)
    assert not report.missing
    jax.tree.map(np.testing.assert_array_equal, variables, trained.variables)


def test_the_description_comes_last(sent):
    *others, last = sent
    assert last == f"{MODEL}/{META}"
    assert set(others) == {
        f"{MODEL}.tar.gz",
        *(f"{MODEL}/{n}" for n in (WEIGHTS, STABLEHLO, PROBE)),
    }


def test_folder_and_archive_are_read_where_they_lie(sent):
    folder, with_slash, packed = map(read_folder, (MODEL, f"{MODEL}/", f"{MODEL}.tar.gz"))
    assert folder.meta == with_slash.meta == packed.meta
    assert folder.files == with_slash.files == packed.files
    assert packed.source == f"{MODEL}.tar.gz"


def test_it_finds_what_the_run_finds(sent, tiny_run, picture):
    exported = open_exported(f"{MODEL}.tar.gz", "jax")
    canvas, extent, _ = decode_image(picture.read_bytes(), "it", exported.canvas)
    found = exported.predict(canvas[None], np.array([extent], np.int32))
    (expected,) = Detector.load(tiny_run)([picture.read_bytes()])
    compare(
        expected,
        Detections(*(array[0] for array in found)),
        score_threshold=0.01,
        max_detections=20,
    )


def test_what_else_lies_there_is_not_fetched(sent, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    put_text(tmp_path, "large", f"{MODEL}/deeper/{WEIGHTS}")
    put_text(tmp_path, "large", f"{MODEL}/notes.txt")
    assert read_folder(MODEL).source == MODEL
    staged = {path.name: path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert staged.keys() == {META, WEIGHTS, STABLEHLO, PROBE}
    assert staged[WEIGHTS].read_bytes() != b"large"


def test_the_verb_predict_takes_it(sent, picture, tmp_path):
    words = ["--model", MODEL, "--engine", "jax", "--no-draw", "--out", str(tmp_path)]
    assert main(["predict", str(picture), *words]) == 0
    assert json.loads((tmp_path / f"{picture.stem}.json").read_text())["detections"]


@pytest.mark.parametrize("verb", [["serve"], ["predict", "photo.jpg", "--out", "found"]])
def test_a_url_stays_one(verb):
    assert build_parser().parse_args([*verb, "--model", MODEL]).model == MODEL
    assert build_parser().parse_args([*verb, "--model", "m"]).model == pathlib.Path("m")


def test_other_schemes_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", "--workdir", "run", "--out", "ftp://host/model"])
    assert (
        "got 'ftp://host/model', expected a folder, or a URL of s3, gs" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="'ftp://host/model' is not a URL"):
        read_folder("ftp://host/model")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("https://host/model", "https://host/model: cannot be written to, expected s3:// or gs://"),
        ("s3://bucket/", "a bucket without a name in it. Give --out s3://bucket/NAME"),
        ("s3://nobucket/model", "no such object, prefix or bucket"),
        ("ftp://host/model", "is not a URL"),
    ],
)
def test_places_that_cannot_be_written_to(bucket, tiny_run, hasty_export, out, message):
    with pytest.raises(UserError, match=message):
        write.export_run(tiny_run, out)


def test_nothing_is_overwritten(bucket, tiny_run, tmp_path, hasty_export):
    put_text(tmp_path, "mine", "s3://bucket/taken/model/notes.txt")
    put_text(tmp_path, "mine", "s3://bucket/taken/packed.tar.gz")
    with pytest.raises(UserError, match=r"taken/model\.tar\.gz exists already"):
        write.export_run(tiny_run, "s3://bucket/taken/model")
    with pytest.raises(UserError, match=r"exists already\. Choose another --out"):
        write.export_run(tiny_run, "s3://bucket/taken/packed")
    write.export_run(tiny_run, "s3://bucket/taken/packed", archive=False)
    assert names_below(bucket, "taken/packed") == {META, PROBE}
    assert (bucket / "taken/packed.tar.gz").read_text() == "mine"


def test_an_upload_that_is_cut_leaves_nothing(bucket, tiny_run, hasty_export, monkeypatch):
    put = remote.Bucket.put

    def cut(store, path, url):
        if url.endswith(META):
            raise ConnectionError("the line was cut")
        put(store, path, url)

    monkeypatch.setattr(remote.Bucket, "put", cut)
    with pytest.raises(UserError, match="the line was cut"):
        write.export_run(tiny_run, "s3://bucket/cut/model")
    assert storage.list_objects("s3://bucket/cut") == []


def test_where_nothing_is_nothing_is_opened(bucket, tmp_path):
    with pytest.raises(UserError, match="there is no such object, prefix or bucket"):
        read_folder("s3://bucket/models/none")
    with pytest.raises(UserError, match=f"{RUN} is not an exported detector"):
        read_folder(RUN)


def test_a_damaged_object_is_found(sent, bucket, tmp_path):
    copy = "s3://bucket/damaged"
    storage.upload(storage.stage(MODEL), copy)
    put_text(tmp_path, "other", f"{copy}/{WEIGHTS}")
    with pytest.raises(UserError, match=f"{copy}: damaged: {WEIGHTS} is not the file"):
        read_folder(copy)


def test_the_page_of_a_run(bucket, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path))
    (bucket / "runs/tiny/report.html").write_text("old")
    assert main(["report", "page", "--workdir", RUN]) == 0
    assert f"{RUN}/report.html" in capsys.readouterr().out
    assert "<h2>Result</h2>" in storage.read_bytes(f"{RUN}/report.html").decode()
    assert not [path for path in tmp_path.rglob("*") if "checkpoints" in path.parts]


def test_runs_side_by_side(bucket, tiny_run, capsys):
    storage.upload(tiny_run / "config.json", "s3://bucket/other/tiny/config.json")
    for name in ("report.json", "metrics.jsonl"):
        storage.upload(tiny_run / name, f"s3://bucket/other/tiny/{name}")
    words = [RUN, "s3://bucket/other/tiny", "--out", "s3://bucket/compared"]
    assert main(["report", "compare", *words]) == 0
    told = capsys.readouterr().out
    assert f"| | {RUN} | s3://bucket/other/tiny |" in told
    assert told.endswith("s3://bucket/compared/comparison.html\n")
    assert names_below(bucket, "compared") == {"comparison.html", "comparison.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["page", "--workdir", "s3://bucket/none"], "s3://bucket/none: there is nothing there"),
        (["page", "--workdir", "https://host/run"], "https://host/run: cannot be written to"),
        (["compare", RUN, "https://host/run"], "https://host/run: has no folders to list"),
        (["compare", RUN, "--out", "https://host/out"], "https://host/out: cannot be written to"),
    ],
)
def test_reports_of_nothing(bucket, words, message, capsys):
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err
