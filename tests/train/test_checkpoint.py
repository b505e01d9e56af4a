"""Checkpoints: which are kept, which is chosen, and that they give back what was saved."""

import json
import shutil

import absl.logging
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from full_disk import largest_file

from ssd_jax.errors import UserError
from ssd_jax.sharding import make_mesh, replicated, split
from ssd_jax.train import checkpoint
from ssd_jax.train.checkpoint import Checkpoints
from ssd_jax.train.state import create_state

CLASSES = ("cat", "dog")
KERNEL = np.arange(16.0, dtype=np.float32)


@pytest.fixture(scope="module")
def state():
    variables = {"params": {"kernel": KERNEL}, "batch_stats": {}}
    return create_state(variables, optax.adam(0.1), make_mesh())


def at_step(state, step):
    return state.replace(step=jax.device_put(np.int32(step), state.step.sharding))


def save(checkpoints, state, step, metric=None, **more):
    metrics = None if metric is None else {"map": metric, "other": 1.0}
    checkpoints.save(at_step(state, step), metrics, classes=CLASSES, **more)


@pytest.fixture(scope="module")
def five_steps(state, tmp_path_factory):
    """Steps 1 to 5; 1, 2 and 4 were evaluated, 2 was the best. Not to be changed."""
    folder = tmp_path_factory.mktemp("five")
    measured = {1: 0.2, 2: 0.9, 4: 0.5}
    with Checkpoints(folder, metric="map", keep_latest=2) as checkpoints:
        for step in range(1, 6):
            progress = {"evaluated": step, "nested": [1, None]}
            save(checkpoints, state, step, measured.get(step), progress=progress)
    return folder


@pytest.fixture
def saved(five_steps, tmp_path):
    """A copy of them to damage."""
    return shutil.copytree(five_steps, tmp_path / "checkpoints")


def data_file(folder):
    """The largest file of a checkpoint."""
    return max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)


def names(folder):
    return {path.name for path in folder.iterdir()}


# ---- kept and chosen ----


def test_the_latest_and_the_best_are_kept(five_steps):
    assert names(five_steps) == {"2", "4", "5"}
    with Checkpoints(five_steps, metric="map", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == checkpoints.select("last") == 5
        assert checkpoints.select("best") == 2
        assert checkpoints.select("4") == checkpoints.select(4) == 4
        with pytest.raises(UserError, match=r"got step '3', expected last, best or one of \[2, 4"):
            checkpoints.select("3")


def test_the_best_stays_the_best_when_a_run_goes_on(saved, state):
    with Checkpoints(saved, metric="map", keep_latest=1) as checkpoints:
        save(checkpoints, state, 6, 0.8)
        save(checkpoints, state, 7)
        assert checkpoints.select("best") == 2
    assert names(saved) == {"2", "7"}


def test_a_metric_of_zero_is_a_metric(tmp_path, state):
    with Checkpoints(tmp_path, metric="map") as checkpoints:
        save(checkpoints, state, 1, 0.0)
        assert checkpoints.select("best") == 1


def test_a_folder_without_checkpoints_says_what_to_do(tmp_path):
    with Checkpoints(tmp_path / "new", metric="map", read_only=True) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="ssd-jax train"):
            checkpoints.select("last")
    assert not (tmp_path / "new").exists()


def test_a_run_that_changes_its_metric_compares_by_the_new_one(saved, state):
    with Checkpoints(saved, metric="other", keep_latest=1) as checkpoints:
        with pytest.raises(UserError, match="none of its checkpoints was evaluated by other"):
            checkpoints.select("best")
        for step in (6, 7, 8):
            save(checkpoints, state, step, 0.1)
        checkpoints.wait()
        assert checkpoints.select("best") == 8
    assert names(saved) == {"8"}


def test_without_an_evaluation_there_is_no_best(tmp_path, state):
    with Checkpoints(tmp_path, metric="map") as checkpoints:
        save(checkpoints, state, 1)
        with pytest.raises(UserError, match="none is the best"):
            checkpoints.select("best")


def test_saving_a_step_again_replaces_it(saved, state):
    with Checkpoints(saved, metric="map") as checkpoints:
        save(checkpoints, state, 5, 0.95, progress={"again": True})
        assert checkpoints.select("best") == checkpoints.latest_step() == 5
        assert checkpoints.progress(5) == {"again": True}
    assert names(saved) == {"4", "5"}


# ---- given back ----


def test_the_state_comes_back_whole(five_steps, state):
    with Checkpoints(five_steps, metric="map", read_only=True) as checkpoints:
        restored = checkpoints.restore(5, state, classes=CLASSES)
    assert int(restored.step) == 5
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(got, expected if expected.shape else got)
        assert got.sharding == expected.sharding


def test_a_state_may_be_donated_at_once(tmp_path):
    """What is saved is the state as it was, whatever the next step does to its memory."""
    size = 1 << 18
    variables = {"params": {"kernel": np.zeros(size, np.float32)}, "batch_stats": {}}
    state = create_state(variables, optax.identity(), make_mesh(jax.devices()[:1]))
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, metric="map", keep_latest=5) as checkpoints:
        for _ in range(3):
            checkpoints.save(state, None, classes=CLASSES)
            state = step(state)
        for saved in range(3):
            restored = checkpoints.restore(saved, state, classes=CLASSES)
            np.testing.assert_array_equal(restored.params["kernel"], np.full(size, saved))


def test_progress_comes_back(five_steps):
    with Checkpoints(five_steps, metric="map", read_only=True) as checkpoints:
        assert checkpoints.progress(4) == {"evaluated": 4, "nested": [1, None]}


def test_a_checkpoint_does_not_know_the_mesh(tmp_path, state):
    """Saved in eight pieces, restored on one device, and as NumPy without anything of ours."""
    place = split(make_mesh())
    sharded = jax.tree.map(lambda x: jax.device_put(x, place) if x.shape == (16,) else x, state)
    with Checkpoints(tmp_path, metric="map") as checkpoints:
        checkpoints.save(at_step(sharded, 3), None, classes=CLASSES)
    one = replicated(make_mesh(jax.devices()[:1]))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)
    with Checkpoints(tmp_path, metric="map", read_only=True) as checkpoints:
        restored = checkpoints.restore(3, like, classes=CLASSES)
    assert restored.params["kernel"].sharding == one
    np.testing.assert_array_equal(restored.params["kernel"], KERNEL)
    np.testing.assert_array_equal(as_numpy(tmp_path / "3/variables")["params"]["kernel"], KERNEL)


def as_numpy(folder):
    """As docs/checkpoints.md has it."""
    with ocp.PyTreeCheckpointer() as reader:
        shapes = reader.metadata(folder).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return reader.restore(folder, restore_args=arguments)


def test_a_network_of_another_shape_is_refused(five_steps, state):
    other = state.replace(params={"kernel": jax.numpy.zeros(7)})
    with (
        Checkpoints(five_steps, metric="map", read_only=True) as checkpoints,
        pytest.raises(UserError, match="does not fit this"),
    ):
        checkpoints.restore(5, other, classes=CLASSES)


def test_weights_of_another_shape_beside_an_average_are_refused(tmp_path):
    variables = {"params": {"kernel": KERNEL}, "batch_stats": {}}
    state = create_state(variables, optax.adam(0.1), make_mesh(), averaged=True)
    with Checkpoints(tmp_path, metric="map") as checkpoints:
        save(checkpoints, state, 1)
        own = checkpoints.restore_variables(1, state.average, classes=CLASSES, of_average=False)
        np.testing.assert_array_equal(own["params"]["kernel"], KERNEL)
        other = {"params": {"kernel": jax.numpy.zeros(7)}, "batch_stats": {}}
        with pytest.raises(UserError, match=r"params/kernel is \(16,\) there, expected \(7,\)"):
            checkpoints.restore_variables(1, other, classes=CLASSES, of_average=False)
        more = {"params": {"kernel": KERNEL, "bias": KERNEL}, "batch_stats": {}}
        with pytest.raises(UserError, match=r"params/bias is missing there"):
            checkpoints.restore_variables(1, more, classes=CLASSES)


def test_other_classes_are_refused(five_steps, state):
    with (
        Checkpoints(five_steps, metric="map", read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"2 classes \(cat, dog\), the run has 1 \(cow\)"),
    ):
        checkpoints.restore(5, state, classes=("cow",))


# ---- damaged ----


def cut(folder):
    data_file(folder).write_bytes(data_file(folder).read_bytes()[:-1])


def flip_a_bit(folder):
    path = data_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_an_item(folder):
    shutil.rmtree(folder / "training")


def empty_the_manifest(folder):
    (folder / "manifest.json").write_text("")


DAMAGE = {
    cut: "bytes, expected",
    flip_a_bit: "the content of",
    remove_an_item: "is missing",
    empty_the_manifest: "manifest.json cannot be read",
}


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage, read_only, saved, state, capsys):
    damage(saved / "5")
    with Checkpoints(saved, metric="map", read_only=read_only) as checkpoints:
        assert checkpoints.latest_step() == 4
        if read_only:
            with pytest.raises(UserError, match=DAMAGE[damage]):
                checkpoints.select("5")
        else:
            save(checkpoints, state, 5)
            assert checkpoints.latest_step() == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {saved}/5: ")
    assert DAMAGE[damage] in line
    assert ("5.damaged" in names(saved)) is not read_only


def test_a_damaged_best_gives_way_to_the_next_best(saved):
    flip_a_bit(saved / "2")
    with Checkpoints(saved, metric="map", read_only=True) as checkpoints:
        assert checkpoints.select("best") == 4


@pytest.mark.parametrize("read_only", [True, False])
def test_when_all_are_damaged_the_run_does_not_begin_again_in_silence(saved, read_only):
    for step in ("2", "4", "5"):
        cut(saved / step)
    before = names(saved)
    with (
        pytest.raises(UserError, match=r"every checkpoint .* in 5, .* in 4, .* in 2, "),
        Checkpoints(saved, metric="map", read_only=read_only) as checkpoints,
    ):
        checkpoints.latest_step()
    assert names(saved) == before


def test_a_checkpoint_without_manifest_is_damaged(saved):
    (saved / "5/manifest.json").unlink()
    with Checkpoints(saved, metric="map", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 4


def test_what_a_killed_process_left_is_cleared_away(saved, state):
    (saved / "6.orbax-checkpoint-tmp/variables").mkdir(parents=True)
    (saved / "deleted/1").mkdir(parents=True)
    (saved / "5").rename(saved / "5.replaced")  # killed while 5 was saved again
    shutil.copytree(saved / "4", saved / "4.replaced")  # killed when it had been
    before = names(saved)
    with Checkpoints(saved, metric="map", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 4
    assert names(saved) == before
    with Checkpoints(saved, metric="map") as checkpoints:
        assert names(saved) == {"2", "4", "5"}
        assert checkpoints.latest_step() == 5


# ---- no room ----


@pytest.mark.parametrize("again", [False, True])
def test_a_write_that_fails_is_one_message_and_the_previous_one_is_intact(again, saved, state):
    noise = np.random.default_rng(0).standard_normal(1 << 19).astype(np.float32)
    larger = state.replace(params={"kernel": jax.device_put(noise, state.step.sharding)})
    message = r"step \d could not be written .*needs 2\.1 MB, and [\d,.]+ MB are free"
    with Checkpoints(saved, metric="map") as checkpoints, largest_file(1 << 20):
        save(checkpoints, larger, 5 if again else 6)
        with pytest.raises(UserError, match=message):
            checkpoints.wait()
    assert names(saved) == {"2", "4", "5"}
    with Checkpoints(saved, metric="map") as checkpoints:
        restored = checkpoints.restore(checkpoints.latest_step(), state, classes=CLASSES)
    np.testing.assert_array_equal(restored.params["kernel"], KERNEL)


def test_too_little_room_is_told_before_anything_is_written(saved, state, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    with Checkpoints(saved, metric="map") as checkpoints:
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=f"{saved}: .* step 6 needs 0.0 MB, and only 0.0 MB"):
            save(checkpoints, state, 6)
    assert names(saved) == {"2", "4", "5"}


def test_the_manifest_has_every_file_that_is_restored(five_steps):
    manifest = json.loads((five_steps / "5/manifest.json").read_text())["files"]
    listed = {five_steps / "5" / name for name in manifest}
    there = {path for path in (five_steps / "5").rglob("*") if path.is_file()}
    assert {path.name for path in there - listed} == {
        "manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"
    }  # fmt: skip
    assert {path.parent.name for path in there - listed} == {"5"}


def test_the_log_of_the_user_is_left_alone(five_steps, caplog):
    before = absl.logging.get_verbosity()
    logger = absl.logging.get_absl_logger()
    with Checkpoints(five_steps, metric="map", read_only=True):
        pass
    assert absl.logging.get_verbosity() == before
    for path, kept in (("/home/mine.py", True), ("/lib/orbax/checkpoint/x.py", False)):
        record = logger.makeRecord("absl", 40, path, 1, "told", (), None)
        assert bool(logger.filter(record)) == kept
