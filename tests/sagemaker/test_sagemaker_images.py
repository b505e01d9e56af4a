"""The container images, as far as they can be looked at without building them."""

import configparser
import os
import pathlib
import shlex
import subprocess

import pytest

from ssd_jax.cli import build_parser

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
    for *sources, _ in copied:
        for source in sources:
            assert (ROOT / source).exists(), source
    assert ["docker/train", "docker/serve", "/usr/local/bin/"] in copied
    (installed,) = (rest for keyword, rest in found if keyword == "RUN")
    extras = installed.partition(".[")[2].partition("]")[0].split(",")
    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    assert set(extras) <= set(options["options.extras_require"])
    assert {"serve", "s3"} <= set(extras)
    assert ("cuda" in extras) == (path.suffix == ".cuda")


def test_there_is_an_image_for_processors_and_one_for_gpus():
    assert [path.suffix for path in DOCKERFILES] == [".cpu", ".cuda"]
