"""A program starts anew, once, where the allocator has to be asked for large pages."""

import platform
import subprocess
import sys

import pytest

LIBRARY, VERSION = platform.libc_ver()
CAN_ASK = LIBRARY == "glibc" and tuple(map(int, VERSION.split(".")[:2])) >= (2, 35)
PROGRAM = (
    "import os, pathlib, sys\n"
    "from ssd_jax.huge_pages import start_with_huge_pages\n"
    "print('start', os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[2:], flush=True)\n"
    "start_with_huge_pages(pathlib.Path(sys.argv[1]))\n"
)
ASKED = "glibc.malloc.hugetlb=1"


def starts(setting, *arguments, tunables=None, program=PROGRAM):
    """What the program told at each of its starts: process, tunables and arguments."""
    command = [sys.executable, "-c", program, str(setting), *arguments]
    environment = {"GLIBC_TUNABLES": tunables} if tunables else {}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [line.split(" ", 3)[1:] for line in told.stdout.splitlines()]


@pytest.fixture
def setting(tmp_path):
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


@pytest.mark.skipif(not CAN_ASK, reason="the allocator is not that of glibc 2.35 or newer")
@pytest.mark.parametrize("other", [None, "glibc.malloc.arena_max=4"])
def test_it_is_the_same_process_with_the_same_arguments(setting, other):
    first, second = starts(setting, "a b", "--c", tunables=other)
    assert first[0] == second[0]
    assert first[2] == second[2] == "['a b', '--c']"
    assert second[1] == (f"{other}:{ASKED}" if other else ASKED)


@pytest.mark.skipif(not CAN_ASK, reason="the allocator is not that of glibc 2.35 or newer")
def test_a_program_that_loses_its_tunables_starts_twice_and_no_more(setting):
    """As glibc takes them from a process with privileges of its own."""
    loses = "import os; os.environ.pop('GLIBC_TUNABLES', None)\n"
    assert len(starts(setting, program=loses + PROGRAM)) == 2


@pytest.mark.parametrize("text", ["[always] madvise never", "always madvise [never]"])
def test_nothing_is_asked_of_a_kernel_that_has_decided(setting, text):
    setting.write_text(text)
    assert len(starts(setting)) == 1


def test_nothing_is_asked_of_another_kernel(tmp_path):
    assert len(starts(tmp_path / "nowhere")) == 1


def test_nothing_changes_what_the_user_has_chosen(setting):
    ((_, tunables, _),) = starts(setting, tunables="glibc.malloc.hugetlb=0")
    assert tunables == "glibc.malloc.hugetlb=0"
