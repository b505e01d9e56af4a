"""The commands that the docs give are such as the command line takes."""

import pathlib
import pkgutil
import re
import shlex

import pytest

from ssd_jax.cli import build_parser
from ssd_jax.config import default_config, flat_items, split_assignments

ROOT = pathlib.Path(__file__).parents[1]
FILES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/README.md"),
         *ROOT.glob("configs/*.py")]  # fmt: skip


def commands(text):
    """Those in blocks, without remarks; a line that ends in \\ goes on."""
    lines = re.sub(r"\\\n *", "", text)
    found = re.findall(r"^(?:    |Run: +|venv/bin/)?ssd-jax ([a-z].*)", lines, re.MULTILINE)
    return [shlex.split(re.split(r"  | \[", line)[0], comments=True) for line in found]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_command_line_takes_the_commands_of_the_docs(path):
    known = dict(flat_items(default_config()))
    for words in commands(path.read_text()):
        _, rest = build_parser().parse_known_args(words)
        assert {name for name, _ in split_assignments(rest)} <= known.keys()


def names(text):
    """What the text imports from the package, and what it calls by its dotted name."""
    for module, imported in re.findall(r"^ *from (ssd_jax[\w.]*) import ([\w, ]+)", text, re.M):
        yield from (f"{module}.{name.strip()}" for name in imported.split(","))
    yield from re.findall(r"`(ssd_jax(?:\.\w+)+)`", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_names_in_the_docs_are_those_of_the_package(path):
    for name in names(path.read_text()):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_settings_in_the_docs_can_be_made(path):
    for block in re.findall(r"```python\n((?:config\..*\n)+)```", path.read_text()):
        config = default_config()
        exec(block, {"config": config})
        assert flat_items(config) != flat_items(default_config())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_files_in_the_docs_are_there(path):
    places = re.findall(r"`((?:ssd_jax|experiments|configs|tests)/[\w/.]+\.\w+)`", path.read_text())
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_the_commands_of_the_docs_are_found():
    found = [words for path in FILES for words in commands(path.read_text())]
    assert len(found) > 50
    assert ["doctor", "train.rec", "--out", "report/"] in found
