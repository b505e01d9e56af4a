"""Huge memory pages for arrays on CPUs."""

import os
import pathlib
import platform
import sys
from collections.abc import Mapping

_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"
# glibc ignores the tunables in a setuid program, which must not restart again and again.
_STARTED = "SSD_JAX_STARTED_WITH_HUGE_PAGES"


def start_with_huge_pages(setting: pathlib.Path = _SETTING) -> None:
    """Restarts this program in the same process if its allocator will then use huge pages.

    On CPUs XLA allocates the memory of a program again for each call, and a training step spends up
    to a sixth of its time while Linux clears it in pages of 4 KiB (docs/performance.md). The
    allocator of glibc asks for pages of 2 MiB if a setting says so before the program starts.
    """
    if not sys.executable or not setting.is_file():
        return
    library, version = platform.libc_ver()
    if library == "glibc" and _can_ask(version, setting.read_text(), os.environ):
        given = os.environ.get(_TUNABLES)
        os.environ[_TUNABLES] = f"{given}:{_TUNABLE}=1" if given else f"{_TUNABLE}=1"
        os.environ[_STARTED] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _can_ask(version: str, setting: str, environment: Mapping[str, str]) -> bool:
    """Whether a restart helps: the kernel grants huge pages on request, and nobody has decided."""
    major, minor = (int(number) for number in version.split(".")[:2])
    return (
        (major, minor) >= (2, 35)
        and "[madvise]" in setting
        and _TUNABLE not in environment.get(_TUNABLES, "")
        and _STARTED not in environment
    )
