"""A run in an object store: everything arrives, and nothing half-sent is ever taken."""

import pathlib
import time

import jax
import numpy as np
import optax
import pytest
from s3_server import serve_s3

from ssd_jax.cli import main
from ssd_jax.config import read_config, save_config
from ssd_jax.data import remote, storage
from ssd_jax.errors import UserError
from ssd_jax.runs import outcome, training
from ssd_jax.sharding import make_mesh
from ssd_jax.train import mirror
from ssd_jax.train.checkpoint import Checkpoints
from ssd_jax.train.mirror import workdir_to_read, workdir_to_write
from ssd_jax.train.state import create_state

URL = "s3://bucket/runs/one"
CLASSES = ("cat",)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with serve_s3(folder, filled_by_hand=False) as environment:
        yield folder / "bucket", environment


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """The folder of the run in the store, empty; and a machine of its own, impatient."""
    import s3fs

    folder, environment = server
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(storage, "PAUSE", 0.01)
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(mirror, "PERIOD", 0.05)
    yield folder / "runs/one"
    for each in remote.open_store(URL).list(URL):
        remote.open_store(URL).remove(each.url)


@pytest.fixture
def another_machine(monkeypatch, tmp_path):
    """Changes to a machine that knows nothing of the run."""
    return lambda: monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path / "other"))


@pytest.fixture(scope="module")
def state():
    variables = {"params": {"kernel": np.arange(8.0, dtype=np.float32)}, "batch_stats": {}}
    return create_state(variables, optax.identity(), make_mesh(jax.devices()[:1]))


def save(workdir, state, *steps, metric=None, keep_latest=2):
    folder = workdir / "checkpoints"
    with Checkpoints(folder, metric="map", keep_latest=keep_latest) as checkpoints:
        for step in steps:
            stepped = state.replace(step=jax.device_put(np.int32(step), state.step.sharding))
            checkpoints.save(stepped, metric and {"map": metric}, classes=CLASSES)


def latest(workdir):
    with Checkpoints(workdir / "checkpoints", metric="map", read_only=True) as checkpoints:
        return checkpoints.latest_step()


def steps_in(folder):
    return {int(path.parent.name) for path in folder.glob("checkpoints/*/manifest.json")}


def content(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def wait_until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class Fault:
    """Makes uploads fail whose address holds `part`; counts them."""

    def __init__(self, monkeypatch, part):
        self.count, self.part = 0, part
        put = remote.Bucket.put

        def failing(store, path, url):
            if self.part and self.part in url:
                self.count += 1
                raise ConnectionError("the line was cut")
            put(store, path, url)

        monkeypatch.setattr(remote.Bucket, "put", failing)


def test_a_local_folder_is_itself(tmp_path):
    with workdir_to_write(tmp_path / "run") as workdir:
        assert workdir == tmp_path / "run"
    assert workdir_to_read(tmp_path / "run") == tmp_path / "run"
    assert not workdir.exists()


def test_a_run_goes_on_on_another_machine(bucket, state, another_machine):
    with workdir_to_write(URL) as workdir:
        (workdir / "metrics.jsonl").write_text("one\n")
        (workdir / "pictures").mkdir()
        (workdir / "pictures/curves.png").write_bytes(b"\x89PNG")
        (workdir / ".report.json.17").write_text("not finished")
        save(workdir, state, 1, metric=0.5)
        save(workdir, state, 2, 3, 4)
    assert steps_in(bucket) == {1, 3, 4}
    another_machine()
    with workdir_to_write(URL) as second:
        assert second != workdir
        assert content(second) == content(bucket)
        assert (second / "pictures/curves.png").read_bytes() == b"\x89PNG"
        assert not (second / ".report.json.17").exists()
        assert latest(second) == 4
        save(second, state, 5)
        (second / "metrics.jsonl").write_text("one\ntwo\n")
    assert steps_in(bucket) == {1, 4, 5}
    assert {path.name for path in (bucket / "checkpoints").iterdir()} == {"1", "4", "5"}
    assert (bucket / "metrics.jsonl").read_text() == "one\ntwo\n"
    copy = workdir_to_read(URL)
    assert latest(copy) == 5
    with Checkpoints(copy / "checkpoints", metric="map", read_only=True) as checkpoints:
        assert checkpoints.select("best") == 1


def test_a_file_that_the_run_removes_is_removed_from_the_store(bucket, monkeypatch):
    with workdir_to_write(URL) as workdir:
        (workdir / "metrics.jsonl").write_text("one\n")
        (workdir / "nonfinite.json").write_text("{}")
    with workdir_to_write(URL) as workdir:
        (workdir / "nonfinite.json").unlink()
    assert set(content(bucket)) == {"metrics.jsonl"}

    def remove(store, url):
        raise FileNotFoundError(url)  # as GCS does if somebody has removed it before

    with monkeypatch.context() as patch, workdir_to_write(URL) as workdir:
        patch.setattr(remote.Bucket, "remove", remove)
        (workdir / "metrics.jsonl").rename(workdir / "other.jsonl")
    assert "other.jsonl" in content(bucket)


def test_checkpoints_are_sent_while_the_run_goes_on(bucket, state):
    with workdir_to_write(URL) as workdir:
        save(workdir, state, 1)
        wait_until(lambda: steps_in(bucket) == {1})
        save(workdir, state, 2, 3)
        wait_until(lambda: steps_in(bucket) == {2, 3})


def test_a_step_that_is_saved_again_is_sent_again(bucket, state):
    with workdir_to_write(URL) as workdir:
        save(workdir, state, 1)
        wait_until(lambda: steps_in(bucket) == {1})
        save(workdir, state, 1, metric=0.5)
    assert (bucket / "checkpoints/1/metrics/metrics").exists()


def run_until_the_line_is_cut(state, fault):
    with workdir_to_write(URL) as workdir:
        save(workdir, state, 2)
        wait_until(lambda: fault.count > 5)


def test_an_upload_that_was_cut_is_never_taken(bucket, state, another_machine, monkeypatch, capsys):
    with workdir_to_write(URL) as workdir:
        save(workdir, state, 1)
    fault = Fault(monkeypatch, "checkpoints/2/variables")
    with pytest.raises(UserError, match=r"not everything could be uploaded .* the line was cut"):
        run_until_the_line_is_cut(state, fault)
    # Once for each kind of failure, and not at every try; a busy machine may add one of its own.
    told = capsys.readouterr().err.count("an upload failed and is tried again")
    assert 1 <= told < fault.count // storage.ATTEMPTS
    assert latest(workdir) == 2
    assert (bucket / "checkpoints/2/training").exists()
    another_machine()
    assert latest(workdir_to_read(URL)) == 1
    with workdir_to_write(URL) as second:
        assert latest(second) == 1
    assert {path.name for path in (bucket / "checkpoints").iterdir()} == {"1"}


def test_the_machine_that_has_more_than_the_store_goes_on_with_it(bucket, state, monkeypatch):
    with workdir_to_write(URL) as workdir:
        save(workdir, state, 1)
    fault = Fault(monkeypatch, "checkpoints/2/manifest.json")
    with pytest.raises(UserError, match="continues the upload"):
        run_until_the_line_is_cut(state, fault)
    assert steps_in(bucket) == {1}
    fault.part = ""
    with workdir_to_write(URL) as workdir:
        assert latest(workdir) == 2
    assert steps_in(bucket) == {1, 2}


def test_a_run_that_was_removed_from_the_store_does_not_come_back(bucket, state):
    with workdir_to_write(URL) as workdir:
        save(workdir, state, 1)
    store = remote.open_store(URL)
    for each in store.list(URL):
        store.remove(each.url)
    with workdir_to_write(URL) as workdir:
        assert content(workdir) == {}


def test_a_run_of_which_nothing_could_be_uploaded_is_not_lost(bucket, state, monkeypatch):
    fault = Fault(monkeypatch, "checkpoints")
    with pytest.raises(UserError, match="continues the upload"):
        run_until_the_line_is_cut(state, fault)
    assert content(bucket) == {}
    fault.part = ""
    with workdir_to_write(URL) as workdir:
        assert latest(workdir) == 2
    assert steps_in(bucket) == {2}


def run_that_fails():
    with workdir_to_write(URL) as workdir:
        (workdir / "config.json").write_text("{}")
        raise ZeroDivisionError


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_store(bucket, monkeypatch, capsys):
    Fault(monkeypatch, "bucket")
    with pytest.raises(ZeroDivisionError):
        run_that_fails()
    assert "not everything could be uploaded" in capsys.readouterr().err


def test_a_second_run_on_the_same_machine_is_refused(bucket):
    with (
        workdir_to_write(URL),
        pytest.raises(UserError, match=f"{URL}: another process is training there"),
        workdir_to_write(f"{URL}/"),
    ):
        pass


def test_places_that_cannot_hold_a_run_are_told(bucket):
    with pytest.raises(UserError, match="there is nothing there"):
        workdir_to_read(URL)
    with pytest.raises(UserError, match="no such object, prefix or bucket"):
        workdir_to_read("s3://nobucket/run")
    for open_workdir in (workdir_to_read, lambda url: workdir_to_write(url).__enter__()):
        with pytest.raises(UserError, match="expected s3:// or gs://"):
            open_workdir("https://example.org/run")


def test_the_copy_has_a_name_that_tells_the_run(bucket):
    with workdir_to_write(URL) as workdir:
        assert workdir.parent == pathlib.Path(storage.cache_folder()) / "runs"
        assert workdir.name.startswith("one-")


def test_a_url_on_the_command_line(bucket, shapes, tmp_path, monkeypatch):
    file = tmp_path / "config.py"
    file.write_text(
        f"from tiny import tiny_config\nget_config = lambda: tiny_config({str(shapes)!r})"
    )
    called = []

    def train(config, workdir, **words):
        save_config(config, workdir / "config.json")
        called.append(words["called"])

    monkeypatch.setattr(training, "run_training", train)
    evaluated = []
    monkeypatch.setattr(
        outcome, "run_evaluation", lambda _, workdir, **__: evaluated.append(workdir)
    )
    assert main(["train", "--config", str(file), "--workdir", URL]) == 0
    assert read_config(bucket / "config.json").steps == 6
    assert called == [URL]
    assert main(["evaluate", "--workdir", URL]) == 0
    assert content(evaluated[0]) == content(bucket)
