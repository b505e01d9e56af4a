"""What is kept for the next time, in the cache folder of the user."""

import hashlib
import os
import pathlib
import platform
import sys

from ssd_jax.hardware import instructions

# Of all compiled programs together, in bytes; the least recently used go first.
LARGEST_COMPILE_CACHE = 4 * 2**30
# The small programs around a large one take longer to look up than to compile.
LEAST_COMPILE_SECONDS = 0.1


def cache_folder() -> pathlib.Path:
    """Where files are kept: SSD_JAX_CACHE, or `ssd_jax` in the user's cache folder."""
    if folder := os.environ.get("SSD_JAX_CACHE"):
        return pathlib.Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "ssd_jax"


def keep_compiled_programs() -> None:
    """Lets this process, and those that it starts, keep what JAX compiles; before JAX is imported.

    Nothing is changed where JAX_COMPILATION_CACHE_DIR is set, even to nothing, which keeps nothing,
    or where JAX is imported already: then whoever imported it has decided.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # JAX would warn at every program that it cannot keep
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # The bound is set with the folder: JAX cannot bound one that was filled without.
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LARGEST_COMPILE_CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(LEAST_COMPILE_SECONDS))


def keep_no_compiled_programs() -> None:
    """For a run of several processes, before its first program; a folder the user gave is used.

    They need not share the user's cache folder, on one host neither where each is in a container,
    and only process 0 writes what JAX keeps. At the next start it alone would find the programs,
    and the others, which compile them, would wait for its part of trying out kernels on a GPU,
    which XLA divides among all processes.
    """
    import jax

    folder = jax.config.jax_compilation_cache_dir
    if folder and pathlib.Path(folder).is_relative_to(cache_folder()):
        jax.config.update("jax_enable_compilation_cache", False)


def _processor() -> str:
    """A name for the instructions that this processor has.

    XLA compiles for the processor at hand, but JAX's keys do not tell its instructions, and a home
    folder may be shared by machines of several kinds.
    """
    text = f"{platform.machine()} {platform.processor()} {instructions()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
