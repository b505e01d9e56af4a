import copy

import cv2
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import write_vgg16
from weights.mxnet_files import params_bytes
from weights.sagemaker_files import Made

from ssd_jax import config as configs
from ssd_jax.cli import main
from ssd_jax.detector import Detector, open_checkpoints
from ssd_jax.errors import UserError
from ssd_jax.importing import count_classes, import_weights, new_layers, start_from
from ssd_jax.models.initialise import variable_shapes
from ssd_jax.network import build_network
from ssd_jax.recipes import recipe_config
from ssd_jax.weights.maps import TORCHVISION_INPUT
from ssd_jax.weights.maps_vgg import TORCHVISION_INDICES, VGG16_CONVOLUTIONS

THIN = (("model.width", str(1 / 64)),)


@pytest.fixture(scope="module")
def made():
    return Made("vgg-16", image_size=300, num_classes=2)


@pytest.fixture(scope="module")
def archive(made, tmp_path_factory):
    return made.write(tmp_path_factory.mktemp("artefact") / "model.tar.gz")


@pytest.fixture(scope="module")
def imported(archive, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("imported")
    return workdir, import_weights(archive, workdir, classes=("cat", "dog"), assignments=THIN)


def trained_classes(workdir):
    config = configs.read_config(workdir / "config.json")
    with open_checkpoints(config, workdir) as checkpoints:
        return checkpoints.classes(checkpoints.latest_step())


def same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_an_artefact_becomes_a_run_that_detects(imported):
    workdir, _ = imported
    detector = Detector.load(workdir)
    assert detector.classes == ("cat", "dog")
    assert detector.step == 0
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    (found,) = detector([cv2.imencode(".png", picture)[1].tobytes()])
    assert len(found.scores) > 0
    assert np.isfinite(found.boxes).all()


def test_pictures_keep_what_a_network_larger_than_the_canvas_sees(tmp_path):
    large = Made("vgg-16", image_size=640, num_classes=2).write(tmp_path / "model.tar.gz")
    import_weights(str(large), tmp_path / "run", classes=("cat", "dog"), assignments=THIN)
    assert configs.read_config(tmp_path / "run/config.json").data.canvas == 640


def test_classes_in_another_order_are_refused(imported, made):
    with pytest.raises(UserError, match="in another order, dog, cat"):
        start_from(made.variables, str(imported[0]), classes=("dog", "cat"))


def test_other_classes_of_the_same_number_take_over_the_heads_and_are_told_so(imported, made):
    _, report = start_from(made.variables, str(imported[0]), classes=("horse", "dog"))
    assert "OTHERS here, and begin with their heads: horse with that of cat\n" in f"{report}\n"
    _, report = start_from(made.variables, str(imported[0]), classes=("cat", "dog"))
    assert "OTHERS" not in str(report)


def test_its_config_is_the_recipe_and_what_the_artefact_says(imported):
    config = configs.read_config(imported[0] / "config.json")
    assert config.recipe == "sagemaker"
    assert (config.model.backbone, config.model.extras) == ("vgg16", "mxnet")
    assert config.model.image_size == 300
    assert config.preprocess.mean == (123.0, 117.0, 104.0)
    assert config.detect.iou_threshold == 0.45
    assert config.data.classes == ("cat", "dog")


def test_the_report_is_given_and_written(imported):
    workdir, report = imported
    assert report.is_clean
    assert not report.kept
    assert (workdir / "import.txt").read_text() == f"{report}\n"


def test_a_training_starts_from_what_was_imported(imported, made):
    zeros = jax.tree.map(np.zeros_like, made.variables)
    variables, report = start_from(zeros, str(imported[0]))
    same(variables, made.variables)
    assert report.metadata["classes"] == "cat, dog"
    assert "step 0" in report.source
    with pytest.raises(UserError, match="got weights of a run of ours, vgg16"):
        start_from(zeros, str(imported[0]), backbone="resnet50")


def test_a_training_starts_from_an_artefact_of_sagemaker(archive, imported, made):
    config = configs.load_config(str(imported[0] / "config.json"))
    variables, report = start_from(
        jax.tree.map(np.zeros_like, made.variables), archive, backbone="vgg16", config=config
    )
    same(variables, made.variables)
    assert report.layout == "SSD vgg16_reduced of mxnet-ssd"
    config.anchors.scales = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
    with pytest.raises(UserError, match="the anchors of its symbol are up to"):
        start_from(variables, archive, config=config)


def test_an_artefact_of_sagemaker_says_how_many_classes_it_is_for(archive):
    assert count_classes(archive) == 2


def test_weights_of_a_run_are_for_its_own_input_and_anchors(imported, made):
    config = configs.load_config(str(imported[0] / "config.json"))
    start_from(made.variables, str(imported[0]), config=config)
    config.preprocess.std = (58.0, 57.0, 57.0)
    with pytest.raises(UserError, match=r"config\.preprocess\.std is \(58.*config\.json"):
        start_from(made.variables, str(imported[0]), config=config)


def test_weights_of_a_network_of_another_size_say_what_differs(imported):
    config = configs.load_config(str(imported[0] / "config.json"))
    config.model.image_size = 512  # one more extra layer
    network = build_network(config, 2)
    shapes = variable_shapes(network.model, 512)
    with pytest.raises(
        UserError, match=r"(?s)MISSING.*config\.model\.image_size is 512, but 300 in"
    ) as told:
        start_from(shapes, str(imported[0]), config=config)
    assert "width" not in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match=r"model\.tar\.gz: no such file"):
        import_weights(str(tmp_path / "model.tar.gz"), tmp_path / "w")


def test_a_training_on_other_classes_starts_with_new_heads_when_asked(imported, made):
    other = copy.deepcopy(made.variables)
    for name, head in other["params"]["heads"].items():
        if name.startswith("class_"):
            head["bias"] = np.full(len(head["bias"]) // 3 * 8, 7, np.float32)
            head["kernel"] = np.zeros((*head["kernel"].shape[:3], len(head["bias"])), np.float32)
    with pytest.raises(UserError, match="MIS-SHAPED: 12"):
        start_from(other, str(imported[0]))
    variables, report = start_from(other, str(imported[0]), reinitialise=("params/heads/*",))
    assert len(report.reinitialised) == 12
    same(variables["params"]["backbone"], made.variables["params"]["backbone"])
    heads = variables["params"]["heads"]
    same(heads["box_0"], made.variables["params"]["heads"]["box_0"])
    same(heads["class_0"], other["params"]["heads"]["class_0"])


def test_a_training_starts_from_a_file_too(made, tmp_path):
    backbone = made.variables["params"]["backbone"]
    file = write_vgg16(tmp_path / "w.safetensors", backbone)
    zeros = jax.tree.map(np.zeros_like, made.variables)
    variables, report = start_from(zeros, file, backbone="vgg16")
    same(variables["params"]["backbone"]["fc7"], backbone["fc7"])
    assert new_layers(variables, report) == ()


def test_a_start_from_a_file_tells_that_the_network_sees_something_else(made, tmp_path):
    file = str(tmp_path / "vgg16.safetensors")
    save_file(torchvision_vgg16(made.variables["params"]["backbone"]), file)
    config = recipe_config("paper", "vgg16")  # Caffe's input
    _, report = start_from(made.variables, file, config=config)
    assert "ANOTHER INPUT" in str(report)
    config.preprocess.update(TORCHVISION_INPUT._asdict())
    _, report = start_from(made.variables, file, config=config)
    assert "ANOTHER INPUT" not in str(report)


def test_an_import_tells_of_another_input_and_that_the_heads_are_new(made, tmp_path, capsys):
    file, out = tmp_path / "vgg16.safetensors", str(tmp_path / "run")
    save_file(torchvision_vgg16(made.variables["params"]["backbone"]), file)
    config = recipe_config("paper", "vgg16")
    config.model.update({"width": 1 / 64})
    config.steps = 1
    configs.save_config(config, tmp_path / "paper.json")
    words = ["--config", str(tmp_path / "paper.json"), "--classes", "cat,dog", "--out", out]
    assert main(["weights", "import", str(file), *words]) == 0
    said = capsys.readouterr()
    assert "expects ANOTHER INPUT than the network is given" in said.out
    assert "warning: heads of the network are not from the file but new" in said.err
    assert "predict" not in said.out


def torchvision_vgg16(backbone):
    names = dict(zip(VGG16_CONVOLUTIONS, TORCHVISION_INDICES, strict=True))
    return {
        f"features.{names[layer]}.{kind}": np.ascontiguousarray(array)
        for layer in names
        for kind, array in (
            ("weight", backbone[layer]["kernel"].transpose(3, 2, 0, 1)),
            ("bias", backbone[layer]["bias"]),
        )
    }


def test_layers_that_a_file_lacks_are_new_unless_a_norm_undoes_their_scale(made, tmp_path):
    backbone = made.variables["params"]["backbone"]
    file = write_vgg16(tmp_path / "w.safetensors", backbone, without=("fc6", "fc7"))
    variables, report = start_from(made.variables, file)
    assert new_layers(variables, report) == ("fc6", "fc7")
    with_norm = {"params": {"backbone": backbone | {"fc6_bn": {"scale": np.ones(16)}}}}
    assert new_layers(with_norm, report) == ("fc7",)


def test_classes_are_numbered_when_nobody_names_them(archive, tmp_path):
    import_weights(archive, tmp_path / "w", assignments=THIN)
    assert trained_classes(tmp_path / "w") == ("class_0", "class_1")


def test_other_classes_take_new_heads(archive, tmp_path):
    names = ("a", "b", "c")
    with pytest.raises(UserError, match=r"got 3 class names, expected 2.*--reinit-heads"):
        import_weights(archive, tmp_path / "w", classes=names, assignments=THIN)
    report = import_weights(
        archive, tmp_path / "w", classes=names, assignments=THIN, reinit_heads=True
    )
    assert len(report.reinitialised) == 12
    assert "RE-INITIALISED" in (tmp_path / "w" / "import.txt").read_text()
    assert trained_classes(tmp_path / "w") == names


def test_anchors_that_are_not_the_recipes_are_refused(made, tmp_path):
    other = copy.deepcopy(made)
    other.node("_contrib_MultiBoxPrior")["attrs"]["sizes"] = "(0.1,0.15)"
    with pytest.raises(UserError, match=r"anchors of its symbol are up to 0\.0043"):
        import_weights(other.write(tmp_path / "m"), tmp_path / "w", assignments=THIN)
    assert not (tmp_path / "w").exists()


def test_another_number_of_anchors_is_refused(made, tmp_path):
    other = copy.deepcopy(made)
    for node in other.symbol["nodes"]:
        if node["op"] == "_contrib_MultiBoxPrior":
            node["attrs"]["ratios"] = "(1,2,0.5)"
        elif node["name"].endswith("_cls_pred_conv"):
            node["attrs"]["num_filter"] = "12"
    with pytest.raises(
        UserError, match=r"\(4, 4, 4, 4, 4, 4\) anchors per cell .*\(4, 6, 6, 6, 4, 4\)"
    ):
        import_weights(other.write(tmp_path / "m"), tmp_path / "w", assignments=THIN)


def test_an_incomplete_artefact_leaves_nothing(made, tmp_path):
    other = copy.deepcopy(made)
    del other.params["arg:conv3_1_bias"]
    with pytest.raises(
        UserError, match=r"MISSING in the file: 1\n    params/backbone/conv3_1/bias"
    ):
        import_weights(other.write(tmp_path / "m"), tmp_path / "w", assignments=THIN)
    assert not (tmp_path / "w").exists()


def test_a_folder_that_is_in_use_is_refused(archive, tmp_path):
    (tmp_path / "note").write_text("mine")
    with pytest.raises(UserError, match="the folder is not empty"):
        import_weights(archive, tmp_path, assignments=THIN)


def test_a_file_that_is_no_artefact_needs_a_config_and_names(tmp_path):
    (tmp_path / "w.params").write_bytes(b"some weights")
    with pytest.raises(UserError, match="Give its config"):
        import_weights(str(tmp_path / "w.params"), tmp_path / "w")
    config = configs.default_config()
    with pytest.raises(UserError, match="--classes"):
        import_weights(str(tmp_path / "w.params"), tmp_path / "w", config=config)


def test_an_artefact_takes_no_config(archive, tmp_path):
    with pytest.raises(UserError, match="Leave out the config"):
        import_weights(archive, tmp_path / "w", config=configs.default_config())


def test_a_file_with_the_config_of_its_network_becomes_a_run(made, tmp_path):
    (tmp_path / "ssd_300-0240.params").write_bytes(params_bytes(made.params))
    config = configs.default_config()
    config.steps = 1
    config.model.update({"width": 1 / 64})
    source = str(tmp_path / "ssd_300-0240.params")
    import_weights(source, tmp_path / "w", config=config, classes=("cat", "dog"))
    zeros = jax.tree.map(np.zeros_like, made.variables)
    same(start_from(zeros, str(tmp_path / "w"))[0], made.variables)
