"""The recipes: what belongs to them, and that a run tells what it changed."""

import pathlib
import re

import pytest

from ssd_jax.config import default_config, flat_items, get, load_config
from ssd_jax.config_check import check
from ssd_jax.errors import UserError
from ssd_jax.recipes import recipe_changes, recipe_config

ROOT = pathlib.Path(__file__).parents[1]
NETWORKS = [("paper", "vgg16"), ("paper", "resnet50"), ("paper", "resnet50_v1"),
            ("sagemaker", "vgg16"), ("sagemaker", "resnet50_v2"), ("best", "vgg16"),
            ("best", "resnet50")]  # fmt: skip


@pytest.mark.parametrize(("recipe", "backbone"), NETWORKS)
def test_a_recipe_changes_nothing_of_itself(recipe, backbone):
    config = recipe_config(recipe, backbone)
    config.steps, config.epochs = 1000, None
    check(config)
    assert (config.recipe, config.model.backbone) == (recipe, backbone)
    assert recipe_changes(config) == {}


def test_changes_are_told_with_both_values():
    config = recipe_config("sagemaker", "resnet50_v2")
    config.augment.crop.iou_binds = False
    config.model.image_size = 300  # the user's to choose in any recipe
    config.data.canvas = 300
    assert recipe_changes(config) == {"augment.crop.iou_binds": {"recipe": True, "run": False}}


def test_a_recipe_has_its_own_networks():
    config = default_config()
    config.update({"recipe": "sagemaker", "steps": 1})
    config.model.backbone = "small"
    with pytest.raises(UserError, match="'small', expected resnet50_v2 or vgg16"):
        check(config)
    with pytest.raises(UserError, match="'papre', expected paper, sagemaker or best"):
        recipe_config("papre", "vgg16")


def test_the_page_knows_every_part_of_best_and_the_others_have_none():
    page = (ROOT / "docs/best.md").read_text()
    for recipe, backbone in NETWORKS:
        config, default = recipe_config(recipe, backbone), default_config()
        parts = ("model.fpn_channels", "loss.class_loss", "loss.box_loss", "optimizer.ema_decay",
                 "augment.mosaic.probability", "detect.nms", "detect.flip")  # fmt: skip
        changed = [name for name in parts if get(config, name) != get(default, name)]
        assert len(changed) == (6 if recipe == "best" else 0)
    for backbone in ("vgg16", "resnet50"):
        best, paper = recipe_config("best", backbone), recipe_config("paper", backbone)
        for (name, value), (_, other) in zip(flat_items(best), flat_items(paper), strict=True):
            if value != other and name not in ("recipe", "epochs", "model.image_size"):
                assert name.removesuffix(".probability") in page, name


def test_the_published_rows():
    rows = {}
    for row in ("vgg16_64", "vgg16_16", "resnet50_64", "resnet50_16"):
        config = load_config(f"{ROOT}/configs/voc0712_sagemaker_512.py:{row}")
        rows[row] = (config.batch_size, config.optimizer.learning_rate)
        assert set(recipe_changes(config)) <= {"optimizer.learning_rate"}
    assert rows == {
        "vgg16_64": (64, 4e-3),
        "vgg16_16": (16, 5e-4),
        "resnet50_64": (64, 2e-3),
        "resnet50_16": (16, 5e-4),
    }


def test_the_page_knows_every_setting_in_which_the_recipes_differ():
    page = (ROOT / "docs/recipes.md").read_text()
    shared = {"recipe", "batch_size", "epochs"}
    for ours, theirs in (("vgg16", "vgg16"), ("resnet50_v1", "resnet50_v2")):
        paper, sagemaker = recipe_config("paper", ours), recipe_config("sagemaker", theirs)
        for (name, value), (_, other) in zip(flat_items(paper), flat_items(sagemaker), strict=True):
            if value == other or name in shared:
                continue
            section, *_, word = name.split(".")
            assert re.search(rf"`{section}\b|{re.escape(name)}|\.{word}`", page), name
