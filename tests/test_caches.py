"""What is kept for the next time: compiled programs, and nothing that slows `--help` down."""

import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ssd_jax import caches
from ssd_jax.caches import cache_folder, keep_compiled_programs, keep_no_compiled_programs
from ssd_jax.errors import UserError

VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE",
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")  # fmt: skip


@pytest.fixture
def before_jax(monkeypatch, tmp_path):
    """An environment in which nobody has decided yet."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "set to be taken back")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax")
    return tmp_path


def settings():
    return [os.environ.get(name) for name in VARIABLES]


def test_compiled_programs_are_kept_in_a_bounded_folder(before_jax):
    keep_compiled_programs()
    folder, size, seconds = settings()
    assert pathlib.Path(folder).is_dir()
    assert pathlib.Path(folder).parent == before_jax / "compiled"
    assert (size, seconds) == (str(4 * 2**30), "0.1")


def test_another_processor_has_another_folder(before_jax, monkeypatch):
    keep_compiled_programs()
    first = os.environ.pop(VARIABLES[0])
    monkeypatch.setattr(caches.platform, "machine", lambda: "z80")
    keep_compiled_programs()
    assert os.environ[VARIABLES[0]] != first


@pytest.mark.parametrize("folder", ["elsewhere", ""])
def test_the_user_decides_where(before_jax, monkeypatch, folder):
    monkeypatch.setenv(VARIABLES[0], folder)
    keep_compiled_programs()
    assert settings() == [folder, None, None]


def test_a_folder_that_cannot_be_made_is_done_without(before_jax):
    (before_jax / "compiled").write_text("")
    keep_compiled_programs()
    assert settings() == [None] * 3


def test_without_a_home_folder_it_is_told_and_done_without(before_jax, monkeypatch):
    for name in ("HOME", "SSD_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for an unknown user
    with pytest.raises(UserError, match=r"no home folder.*Set SSD_JAX_CACHE"):
        cache_folder()
    keep_compiled_programs()
    assert settings() == [None] * 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(before_jax))
    assert cache_folder() == before_jax / "ssd_jax"


def test_whoever_has_imported_jax_decides(before_jax, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    keep_compiled_programs()
    assert settings() == [None] * 3


HELP = """
import contextlib, io, sys
from ssd_jax.cli import COMMANDS, main
names = [command.__name__.rpartition(".")[2] for command in COMMANDS]
for arguments in [["--help"], *([name, "--help"] for name in names)]:
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.suppress(SystemExit):
        main(arguments)
    assert "usage: ssd-jax" in told.getvalue(), arguments
print({"jax", "flax", "numpy", "jaxtyping", "ml_collections"} & set(sys.modules))
"""


def test_help_of_every_verb_imports_nothing_heavy():
    told = subprocess.run(
        [sys.executable, "-c", HELP], capture_output=True, text=True, timeout=120, check=True
    )
    assert told.stdout.strip() == "set()", told.stderr


PROGRAM = """
import jax, jax.numpy as jnp
jax.jit(lambda x: jnp.sort(jnp.tanh(x @ x)))(jnp.ones((8, 8))).block_until_ready()
"""


def test_jax_keeps_programs_there_without_a_warning(before_jax):
    keep_compiled_programs()
    folder = pathlib.Path(os.environ[VARIABLES[0]])
    environment = os.environ | {VARIABLES[2]: "0", "JAX_PLATFORMS": "cpu"}

    def run():
        told = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            env=environment, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert "Error" not in told.stderr
        return {path.name for path in folder.glob("*-cache")}

    kept = run()
    assert any("lambda" in name for name in kept)
    assert run() == kept


@pytest.mark.parametrize(("ours", "kept"), [(True, False), (False, True)])
def test_several_hosts_keep_only_in_a_folder_that_the_user_gave(ours, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_JAX_CACHE", str(tmp_path))
    folder = tmp_path / "compiled/x86" if ours else tmp_path.parent
    changed = {}
    config = SimpleNamespace(jax_compilation_cache_dir=str(folder), update=changed.__setitem__)
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(config=config))
    keep_no_compiled_programs()
    assert changed.get("jax_enable_compilation_cache", True) == kept
