"""The experiment on a small set of photos: its arms, its bookkeeping, and one small arm."""

import ast
import fnmatch
import importlib
import itertools
import json
import pathlib

import jax
import pytest
from PIL import Image
from scripts import script

from ssd_jax import experiment
from ssd_jax.config import flat_items
from ssd_jax.errors import UserError
from ssd_jax.models.ssd import feature_shapes
from ssd_jax.ops.anchors import paper_levels
from ssd_jax.recipes import recipe_changes
from ssd_jax.sharding import make_mesh
from ssd_jax.weights.maps_vgg import VGG16_CONVOLUTIONS

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "voc300"


@pytest.fixture(scope="module")
def run():
    with script("experiments/voc300/run.py") as module:
        yield module


@pytest.fixture(scope="module")
def arms(run):
    return importlib.import_module("arms")


@pytest.fixture(scope="module")
def figures(run):
    return importlib.import_module("figures")


@pytest.fixture
def tiny(arms):
    return arms.Scale(
        "tiny", 64, 8, 4, batch_size=4, epochs=1.0, evaluations=1, frozen="conv1_*", width=0.02
    )


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiling is most of the time here, and what is compiled runs for two steps."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def one_device():
    return make_mesh(jax.devices()[:1])


def words_of(config):
    return dict(flat_items(config))


def configs(arms, scale, shapes):
    given = {
        "scale": scale,
        "data": shapes,
        "weights": "",
        "classes": ("cross", "ring", "triangle"),
    }
    return {name: arms.arm_config(arm, seed=1, **given) for name, arm in arms.arms(scale).items()}


def test_an_arm_differs_from_best_by_its_part_and_nothing_else(arms, shapes):
    built = configs(arms, arms.FULL, shapes)
    best = words_of(built["best"])
    for name, arm in arms.arms(arms.FULL).items():
        if arm.recipe == "best":
            own = words_of(built[name])
            assert {word for word in own if own[word] != best[word]} == set(arm.changes), name


def test_a_longer_run_stretches_its_schedules(arms, shapes):
    scale = arms.of_length(arms.REDUCED, 3 * arms.REDUCED.epochs)
    assert scale.name == "reduced-36-epochs"
    longer, short = (configs(arms, each, shapes) for each in (scale, arms.REDUCED))
    for name in ("paper", "best"):
        now, before = longer[name], short[name]
        assert now.epochs == 3 * before.epochs
        assert now.optimizer.warmup_steps == pytest.approx(3 * before.optimizer.warmup_steps, abs=2)
        assert now.evaluate.every_epochs == 3 * before.evaluate.every_epochs
        if name == "paper":
            assert now.optimizer.decay_epochs == pytest.approx(
                [3 * epoch for epoch in before.optimizer.decay_epochs]
            )


def test_the_faithful_recipes_are_those_but_for_the_length_of_the_run(arms, shapes):
    length = {"optimizer.warmup_steps", "optimizer.clip_norm"}
    decays = {"optimizer.decay_epochs"}
    fewer_steps = {"optimizer.rate_multipliers", "optimizer.learning_rate"} | decays
    for scale, fewer, falls in (
        (arms.FULL, set(), None),
        (arms.REDUCED, fewer_steps, (0.7 * arms.REDUCED.epochs, 0.9 * arms.REDUCED.epochs)),
    ):
        built = configs(arms, scale, shapes)
        assert set(recipe_changes(built["paper"])) == length | fewer
        # Its batch is another one than the recipe's, and so are the rate and what is counted over.
        assert set(recipe_changes(built["sagemaker"])) - {"loss.group"} == (
            length | fewer | decays | {"optimizer.learning_rate"}
        )
        assert built["paper"].optimizer.decay_epochs == falls


@pytest.mark.parametrize("name", ["FULL", "REDUCED"])
def test_the_peer_has_the_protocol_of_paper(arms, name, shapes):
    """Read, not imported: the peer needs PyTorch."""
    tree = ast.parse((FOLDER / "peer.py").read_text())
    calls = {
        ast.unparse(node.targets[0]): node.value for node in tree.body if "targets" in vars(node)
    }
    words = {word.arg: eval(ast.unparse(word.value)) for word in calls[name].keywords}
    size, ratios, scales, steps = (eval(ast.unparse(value)) for value in calls[name].args)

    scale = getattr(arms, name)
    config = configs(arms, scale, shapes)["paper"]
    assert size == config.model.image_size
    assert (words["batch"], words["epochs"]) == (config.batch_size, config.epochs)
    assert words["rate"] == config.optimizer.learning_rate
    decays = [epochs / scale.epochs for epochs in config.optimizer.decay_epochs or ()]
    assert words["decays"] == pytest.approx(decays or experiment._DECAY_PARTS)
    assert words["evaluations"] == scale.evaluations
    frozen = [name for name in VGG16_CONVOLUTIONS if fnmatch.fnmatch(name, scale.frozen)]
    assert words.get("frozen_convolutions", 0) == len(frozen)
    optimizer = config.optimizer
    assert eval(ast.unparse(calls["(MOMENTUM, WEIGHT_DECAY, CLIP_NORM, WARMUP_PART)"])) == (
        optimizer.momentum, optimizer.weight_decay, optimizer.clip_norm, arms.WARMUP_PART
    )  # fmt: skip
    levels = paper_levels(size, feature_shapes(backbone="vgg16", image_size=size))
    assert [level.sizes for level in levels] == [
        pytest.approx((s, (s * larger) ** 0.5)) for s, larger in itertools.pairwise(scales)
    ]
    assert [level.anchors_per_cell for level in levels] == [2 + 2 * len(each) for each in ratios]
    assert [level.steps and size * level.steps[0] for level in levels] == (
        pytest.approx(steps) if steps else [None] * len(levels)
    )


def test_a_part_is_compared_with_the_run_of_the_same_seed(arms, figures, tmp_path):
    curve = {"step": [10, 20], "map_voc07": [0.1, 0.5]}
    base = {"map_voc12": 0.4, "map_coco": 0.2, "batch_size": 4, "train_images": 8, "curve": curve}
    rows = [
        base | {"arm": arm, "seed": seed, "map_voc07": value}
        for arm, seed, value in (
            ("best", 0, 0.5),
            ("best", 1, 0.6),
            ("without mosaic", 0, 0.48),
            ("without mosaic", 1, 0.62),
            ("without average", 2, 0.9),  # there is no best with this seed yet
        )
    ]
    against = figures.differences(figures.by_arm(rows), "best")
    assert list(against) == ["without mosaic"]
    assert against["without mosaic"] == pytest.approx([-0.02, 0.02])
    lines = figures.table(rows, arms.FULL).splitlines()
    assert "| best | 2 | 55.0 [50.0, 60.0] | 40.0 [40.0, 40.0] | 20.0 [20.0, 20.0] |  |" in lines
    assert any(line.endswith("| +0.0 [-2.0, +2.0] |") for line in lines)
    rows[1]["curve"] = {"step": [11, 19, 20], "map_voc07": [0.2, 0.5, 0.5]}  # of another version
    figures.tell(rows, arms.FULL, tmp_path)
    for name in ("curves.png", "ablation.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 900


def test_runs_of_other_machines_keep_their_lines(arms, figures, tmp_path, capsys):
    changes = {name: dict(arm.changes) for name, arm in arms.arms(arms.FULL).items()}

    def row(arm, seed, **more):
        photos = {"val_images": 250, "val_fingerprint": "these"}
        return {"arm": arm, "seed": seed, "changes": changes[arm], "by": "here"} | photos | more

    elsewhere = [
        row("paper", 0, by="there"),
        row("best", 1, by="there"),
        row("best", 0, by="there"),
        row("paper", 2, by="there", val_images=7),
        row("sagemaker", 0, changes={"ema": 0.5}),  # it was another arm then
        {"arm": "gone", "seed": 0, "changes": {}},
        row("without mosaic", 0, val_fingerprint="others"),
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in elsewhere))
    before = figures.told_before(tmp_path, arms.FULL)
    rows = figures.merged([row("best", 0), row("sagemaker", 1)], before, arms.FULL)
    assert [(each["arm"], each["seed"], each["by"]) for each in rows] == [
        ("paper", 0, "there"),
        ("sagemaker", 1, "here"),
        ("best", 0, "here"),
        ("best", 1, "there"),
    ]
    assert "left out: 2 earlier results on other photos" in capsys.readouterr().out
    assert figures.told_before(tmp_path / "none", arms.FULL) == []


def test_runs_on_other_images_are_kept_apart(run, tiny, shapes, tmp_path):
    folder = tmp_path / "data"
    assert run.fewer_images(shapes, folder, tiny) == run.fewer_images(shapes, folder, tiny)
    with pytest.raises(UserError, match=f"the runs here are on {shapes.resolve()}, got --data"):
        run.fewer_images(tmp_path, folder, tiny)


def test_a_run_outside_a_git_clone_has_a_row(arms, figures):
    report = {
        "seed": 0,
        "step": 2,
        "protocol": {"images": 4, "fingerprint": "x"},
        "metrics": dict.fromkeys(("map_voc07", "map_voc12", "map_coco"), 0.5),
        "data": {"train": {"images": 8}},
        "config": {"batch_size": 4, "model": {"image_size": 64}},
        "curves": {"val": {"step": [2], "map_voc07": [0.5]}},
        "how": {
            "starts": [{"environment": {"devices": "cpu"}, "code": None}],
            "images_per_second": 1.0,
        },
    }
    assert figures.row_of("paper", arms.Arm("paper"), report)["commit"] is None


def test_an_arm_from_end_to_end_is_run_once(
    run, arms, figures, tiny, shapes, tmp_path, monkeypatch
):
    quick = arms.Arm(  # to compile
        "paper",
        {
            "model.backbone": "small",
            "augment.distort.probability": 0.0,
            "augment.expand.probability": 0.0,
            "augment.crop.min_ious": (),
        },
    )
    for module in (run, figures):
        monkeypatch.setattr(module, "arms", lambda scale: {"paper": quick})
    tiny = tiny._replace(frozen="")
    words = ["--data", shapes, "--weights", "", "--arm", "paper", "--seed", "3", "--epochs", "2"]
    words += ["--runs", tmp_path / "runs", "--out", tmp_path / "out"]
    words = [str(word) for word in words]
    run.main(words, scale=tiny, mesh=one_device())
    (row,) = map(
        json.loads, (tmp_path / "out/tiny-2-epochs/results.jsonl").read_text().splitlines()
    )
    assert (row["arm"], row["seed"], row["step"]) == ("paper", 3, 4)
    assert (row["train_images"], row["val_images"], row["curve"]["step"]) == (8, 4, [4])
    table = (tmp_path / "out/tiny-2-epochs/table.md").read_text()
    assert "tiny-2-epochs: SSD-VGG16 at 64 px, 8 + 4 images, 2 epochs" in table
    workdir = tmp_path / "runs/tiny-2-epochs/paper-3"
    assert not (workdir / "checkpoints").exists()  # 200 MB each at full size

    starts = (workdir / "starts.jsonl").read_text()
    run.main(words, scale=tiny, mesh=one_device())
    assert (workdir / "starts.jsonl").read_text() == starts
    monkeypatch.setitem(arms.RATES, "paper", 0.1)
    with pytest.raises(UserError, match=r"learning_rate was 0.001 .* Give another --runs"):
        run.main(words, scale=tiny, mesh=one_device())


@pytest.mark.long
def test_what_only_detects_otherwise_takes_the_weights_of_another_arm(run, tiny, shapes, tmp_path):
    words = ["--data", shapes, "--weights", "", "--seed", "0"]
    words += ["--runs", tmp_path / "runs", "--out", tmp_path / "out"]
    for name in ("best", "without mirrored view", "without soft suppression"):
        words += ["--arm", name]
    run.main([str(word) for word in words], scale=tiny, mesh=one_device())
    rows = [*map(json.loads, (tmp_path / "out/tiny/results.jsonl").read_text().splitlines())]
    assert [row["arm"] for row in rows[1:]] == ["without soft suppression", "without mirrored view"]
    assert {row["step"] for row in rows} == {2}
    assert [row.get("weights_of") for row in rows] == [None, "best", "best"]
