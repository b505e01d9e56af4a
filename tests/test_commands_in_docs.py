"""The commands that the docs give are such as the command line takes."""

import pathlib
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


def test_the_commands_of_the_docs_are_found():
    found = [words for path in FILES for words in commands(path.read_text())]
    assert len(found) > 50
    assert ["doctor", "train.rec", "--out", "report/"] in found
