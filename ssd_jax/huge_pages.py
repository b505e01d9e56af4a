"""Memory in large pages for arrays on CPUs."""

import os
import pathlib
import platform
import sys
from collections.abc import Mapping

_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLES = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"
# A process with privileges of its own does not get the tunables; it must not start for ever.
_STARTED = "SSD_JAX_STARTED_WITH_HUGE_PAGES"


def start_with_huge_pages(setting: pathlib.Path = _SETTING) -> None:
    """Starts this program anew, in the same process, if its allocator then asks for huge pages.

    XLA takes the memory of a program anew for each call on CPUs, and a training step spends up to
    a sixth of its time on having Linux clear it in pages of 4 KiB (docs/performance.md). The
    allocator of glibc asks for pages of 2 MiB if it is told so before a program starts.
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
    """Not where the kernel gives them to everybody or to nobody, nor where it has been decided."""
    major, minor = (int(number) for number in version.split(".")[:2])
    return (
        (major, minor) >= (2, 35)
        and "[madvise]" in setting
        and _TUNABLE not in environment.get(_TUNABLES, "")
        and _STARTED not in environment
    )
