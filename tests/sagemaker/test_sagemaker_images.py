"""The container images, as far as they can be looked at without building them."""

import configparser
import os
import pathlib
import shlex
import subprocess

import pytest

from ssd_jax.cli import build_parser
from ssd_jax.data.storage import is_remote
from ssd_jax.recipes import recipe_config
from ssd_jax.sagemaker.channels import Channels
from ssd_jax.sagemaker.train import PRETRAINED, _weights
from ssd_jax.weights.maps import Input
from ssd_jax.weights.maps_vgg import VGG16_KERAS, VGG16_TORCHVISION

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


def instructions(path):
    """(keyword, arguments) of each instruction."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("name", ["train", "serve"])
def test_an_entry_point_is_the_verb(name):
    path = ROOT / "docker" / name
    assert os.access(path, os.X_OK)
    subprocess.run(["sh", "-n", path], check=True)
    words = shlex.split(path.read_text(), comments=True)
    assert words == ["exec", "ssd-jax", "sagemaker", name, "$@"]
    assert build_parser().parse_args(words[2:4]).root == pathlib.Path("/opt/ml")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_has_what_it_copies_and_installs_extras_that_there_are(path):
    found = instructions(path)
    assert found[0] == ("FROM", "python:3.12-slim")
    known = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "EXPOSE", "CMD"}
    assert {keyword for keyword, _ in found} <= known
    copied = [rest.split() for keyword, rest in found if keyword == "COPY"]
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in sent
    for *sources, _ in copied:
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in sent, source
    assert ["docker/train", "docker/serve", "/usr/local/bin/"] in copied
    (installed,) = (rest for keyword, rest in found if keyword == "RUN")
    extras = installed.partition(".[")[2].partition("]")[0].split(",")
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    assert set(extras) <= set(options["options.extras_require"])
    assert {"serve", "s3", "weights", "onnx"} <= set(extras)
    assert ("cuda" in extras) == (path.suffix == ".cuda")
    assert ("openvino" in extras) == (path.suffix == ".cpu")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_imagenet_weights_of_an_image_are_for_the_input_of_the_recipe(path, monkeypatch):
    variables = dict(
        each.split("=", 1)
        for keyword, rest in instructions(path)
        if keyword == "ENV"
        for each in rest.split()
    )
    # No published ResNet-50 has a name here: see docs/sagemaker.md.
    assert PRETRAINED["resnet-50"] not in variables
    variable = PRETRAINED["vgg-16"]
    monkeypatch.setenv(variable, variables[variable])
    place = _weights({"use_pretrained_model": 1, "base_network": "vgg-16"}, Channels("", ""))
    assert place == variables[variable]
    assert is_remote(place)
    assert place.endswith(".h5")  # of Keras, which needs the extra
    (installed,) = (rest for keyword, rest in instructions(path) if keyword == "RUN")
    assert ",keras," in installed
    preprocess = recipe_config("sagemaker", "vgg16").preprocess
    network_sees = Input(preprocess.mean, preprocess.std)
    assert VGG16_KERAS.expects.is_like(network_sees)
    assert not VGG16_TORCHVISION.expects.is_like(network_sees)


def test_there_is_an_image_for_processors_and_one_for_gpus():
    assert [path.suffix for path in DOCKERFILES] == [".cpu", ".cuda"]
