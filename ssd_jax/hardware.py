"""The cores, the CPU and the memory that this process may use."""

import contextlib
import os
import pathlib
import platform
import re


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The name of the CPU of this machine."""
    return _cpuinfo("model name") or platform.machine()


def instructions() -> str:
    """The names of the CPU's instruction set extensions, sorted."""
    # "flags" on x86, "Features" on ARM.
    return " ".join(sorted((_cpuinfo("flags") or _cpuinfo("Features")).split()))


def memory_bytes(
    groups: str | os.PathLike = "/proc/self/cgroup", limits: str | os.PathLike = "/sys/fs/cgroup"
) -> int:
    """The memory of this machine, or of this process' control group if that has less.

    The group is that of a container or a Slurm job, whose processes are killed if they exceed it.
    """
    least = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _text(groups).splitlines():  # number:controllers:path, cgroups(7)
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = pathlib.Path(limits, controllers)
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            folder = root / path.lstrip("/")
            for each in (folder, *folder.parents):
                if each.is_relative_to(root):
                    with contextlib.suppress(ValueError):  # "max" is no limit
                        least = min(least, int(_text(each / name)))
    return least


def _cpuinfo(name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else ""


def _text(path: str | os.PathLike) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
