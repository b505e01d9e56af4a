"""What the folder of a run tells."""

import functools
import importlib.metadata
import json
import subprocess

import jax
import pytest
from made_runs import make_run, make_unfinished_run

import ssd_jax
from ssd_jax.errors import UserError
from ssd_jax.report import starts
from ssd_jax.report.collect import MOST_POINTS, curve, open_run, speed, waiting_hint


def train(step, **values):
    return {"step": step, "split": "train", **values}


def test_a_long_curve_is_thinned_and_keeps_its_end():
    records = [train(step, loss=float(step)) for step in range(1, 1002)]
    columns = curve(records, "train", ("loss", "lr"))
    assert list(columns) == ["step", "loss"]
    assert len(columns["step"]) <= MOST_POINTS
    assert (columns["step"][-1], columns["loss"][-1]) == (1001, 1001.0)
    gaps = {b - a for a, b in zip(columns["step"], columns["step"][1:], strict=False)}
    assert len(gaps) == 1


def test_speed_is_the_median_and_memory_the_highest():
    records = [
        train(1, images_per_second=1.0, data_wait=0.5, host_memory_gib=2.0),
        train(2, images_per_second=9.0, data_wait=0.1, host_memory_gib=3.0),
        train(3, images_per_second=11.0, data_wait=0.1, host_memory_gib=1.0),
        {"step": 3, "split": "val", "map_voc07": 0.5},
    ]
    assert speed(records) == {
        "images_per_second": 9.0,
        "data_wait": 0.1,
        "host_memory_gib": 3.0,
        "device_memory_gib": None,
    }


@pytest.mark.parametrize(("waits", "hint"), [((0.0, 0.1, 0.9), ""), ((0.3, 0.3, 0.0), "30% of")])
def test_a_run_that_waited_for_pictures_says_what_helps(waits, hint):
    records = [train(step, data_wait=wait) for step, wait in enumerate(waits)]
    assert waiting_hint(records).startswith(hint)
    assert bool(waiting_hint(records)) == bool(hint)
    assert waiting_hint([]) == ""


def test_every_start_is_a_line_and_a_cut_one_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/ssd-jax", "train", "--workdir", "my run"])
    starts.record_start(
        tmp_path, step=0, weights={"source": "vgg\u202816.safetensors"}, data={"train": "a1"}
    )
    with (tmp_path / starts.STARTS_FILE).open("a") as lines:
        lines.write('{"time": "20')
    with (tmp_path / starts.STARTS_FILE).open("ab") as lines:
        lines.write("ü".encode()[:1])  # in the middle of a letter
    # The next start is not lost to the line that was cut off.
    starts.record_start(tmp_path, step=7, weights=None, data={"train": "a1", "test": "c3"})
    first, second = starts.read_starts(tmp_path)
    assert (first["step"], second["step"]) == (0, 7)
    assert first["command"] == "ssd-jax train --workdir 'my run'"
    assert first["weights"] == {"source": "vgg\u202816.safetensors"}  # an end of line to some
    for package in ("jax", "faster-coco-eval", "ml_collections"):
        assert first["environment"]["packages"][package]
    assert first["environment"]["processor"]
    assert first["environment"]["driver"]
    assert first["environment"]["variables"]["JAX_PLATFORMS"] == "cpu"
    assert "/somewhere" not in json.dumps(first)
    assert starts.data_of_last_start(tmp_path) == {"train": "a1", "test": "c3"}


def test_the_package_has_a_version_where_it_is_not_installed(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert starts.installed_version("ssd_jax") == ssd_jax.__version__
    assert starts.installed_version("jax") is None


def test_the_bytes_of_images_are_those_of_the_present_data(tmp_path):
    record = functools.partial(starts.record_start, tmp_path, step=0, weights=None)
    record(data={"train": "a1", "test": "b1"}, images={"train": "a", "test": "b"})
    record(data={"train": "a1", "test": "c1"}, images={"train": None, "test": None})  # no doctor
    assert starts.images_of_last_start(tmp_path) == {"train": "a"}
    record(data={"train": "a1", "test": "c1"}, images={"train": "a", "test": "c"})
    assert starts.images_of_last_start(tmp_path) == {"train": "a", "test": "c"}


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/a/ssd_jax/__main__.py", "train"], "python -m ssd_jax train"),
        (
            ["experiments/voc_table/run.py", "--seeds", "5"],
            "python experiments/voc_table/run.py --seeds 5",
        ),
        (["/venv/site-packages/ipykernel_launcher.py", "-f", "kernel.json"], None),
        ([], None),
    ],
)
def test_the_command_as_it_was_typed(arguments, command):
    assert starts.command_line(arguments) == command


@pytest.fixture
def git(tmp_path):
    """`git(...)` in the folder of a project that holds a package."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()

    def git(*arguments):
        identity = ["-c", "user.name=A", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    return git


def test_the_commit_is_of_the_code_and_not_of_what_lies_around_it(tmp_path, git):
    package = tmp_path / "package"
    assert starts.code_state(package, tmp_path) is None
    git("init")
    git("commit", "--allow-empty", "-m", "of a project that the package is installed in")
    assert starts.code_state(package, tmp_path) is None
    git("add", "package")
    git("commit", "-m", "of the package itself")
    state = starts.code_state(package, tmp_path)
    assert (len(state["commit"]), state["changed"]) == (40, False)
    assert list(tmp_path.glob("*.patch")) == []


def test_what_differs_from_the_commit_is_kept_as_a_patch(tmp_path, git, monkeypatch):
    file = tmp_path / "package/__init__.py"
    git("init")
    git("add", "package")
    git("commit", "-m", "of the package")
    changed = "caf\xe9\r\n".encode("latin-1")  # of any encoding
    file.write_bytes(changed)
    run = tmp_path / "run"
    run.mkdir()
    state = starts.code_state(file.parent, run)
    assert state["changed"]
    git("checkout", "package")
    git("apply", str(run / state["patch"]))
    assert file.read_bytes() == changed
    # The same changes are the same file at every start.
    assert starts.code_state(file.parent, run) == state
    assert len(list(run.iterdir())) == 1

    monkeypatch.setattr(starts, "MOST_PATCH_BYTES", 10)
    too_much = starts.code_state(file.parent, tmp_path)
    assert too_much["patch"] is None
    assert too_much["not_kept"].startswith("0.0 MB; at most")
    assert list(tmp_path.glob("*.patch")) == []


def test_a_state_that_git_cannot_tell_is_not_called_unchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(starts, "_git", lambda _, verb, *__: None if verb == "status" else b"abc")
    assert starts.code_state(tmp_path, tmp_path) is None


def test_a_run_is_read_from_its_folder(tmp_path):
    run = open_run(make_run(tmp_path / "pets"))
    assert run.name == "pets"
    assert run.report["curves"]["val"] == {"step": [10], "map_voc07": [0.5]}
    assert run.report["how"]["host_memory_gib"] == pytest.approx(1.0)


def test_a_run_behind_a_url_is_repeated_from_its_config_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path))
    staged = open_run(make_run(tmp_path / "runs/pets-0123456789ab"))
    command = "ssd-jax train --config config.json --workdir NEW_FOLDER"
    assert staged.report["how"]["repeat"] == command


def test_an_unfinished_run_is_told_by_its_last_evaluation(tmp_path):
    folder = make_unfinished_run(tmp_path / "pets", map_voc07=0.25)
    starts.record_start(folder, step=0, weights=None, data={"train": "a1", "val": "b2"})
    run = open_run(folder)
    assert run.unfinished == "unfinished, step 15"
    assert (run.report["step"], run.report["classes"]) == (12, ["cat", "<dog>"])
    assert run.report["metrics"]["map_voc07"] == 0.25
    assert run.report["protocol"]["fingerprint"] == "b2"
    assert open_run(make_run(tmp_path / "finished")).unfinished == ""


def test_a_finished_run_that_was_started_again_is_not_told_by_its_old_report(tmp_path):
    folder = make_run(tmp_path / "pets")
    starts.record_start(folder, step=10, weights=None, data={"val": "b2"})
    run = open_run(folder)
    assert (run.unfinished, run.report["protocol"]["fingerprint"]) == ("unfinished, step 10", "b2")


def test_a_run_that_has_told_nothing_yet_is_one_too(tmp_path):
    folder = make_unfinished_run(tmp_path / "pets")
    (folder / "metrics.jsonl").unlink()
    run = open_run(folder)
    assert (run.unfinished, run.report["metrics"]) == ("unfinished, step 0", {})


def test_a_report_that_was_cut_off_is_no_traceback(tmp_path):
    path = make_run(tmp_path / "pets") / "report.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"report\.json: this is not a complete report of a run"):
        open_run(tmp_path / "pets")
    path.write_text('{"how": {"starts": []}}')
    with pytest.raises(UserError, match=r"not a complete report of a run \('classes'\)"):
        open_run(tmp_path / "pets")


def test_a_run_that_was_moved_is_repeated_from_where_it_lies(tmp_path):
    make_run(tmp_path / "pets").rename(tmp_path / "other pets")
    repeat = open_run(tmp_path / "other pets").report["how"]["repeat"]
    assert f"--config '{tmp_path}/other pets/config.json'" in repeat


def test_a_run_called_by_a_dot_is_repeated_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "pets"))
    repeat = open_run(".").report["how"]["repeat"]
    assert repeat == (
        f"ssd-jax train --config {tmp_path}/pets/config.json --workdir {tmp_path}/pets-again"
    )


def test_what_the_command_cannot_repeat_is_told_beside_it(tmp_path):
    folder = make_run(tmp_path / "pets", data__train__root="")
    starts.record_start(
        folder, step=0, weights={"imported": "weights from x"}, data={}, own={"loss": "mine.focal"}
    )
    changes = {"epochs": (1, 2)}
    starts.record_start(folder, step=7, weights=None, data={}, changes=changes)
    notes = open_run(folder).report["how"]["repeat_notes"]
    for note, text in zip(
        notes,
        (
            "The loss was a function of the program that started the run, mine.focal",
            "The images came from the program that started the run",
            "import them into the new folder first",
            "From step 7 on the run had other settings (epochs)",
            f"JAX_NUM_CPU_DEVICES={jax.device_count()} before the command",
            "These environment variables were set: JAX_PLATFORMS=cpu",
        ),
        strict=True,
    ):
        assert text in note


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_run(tmp_path)
