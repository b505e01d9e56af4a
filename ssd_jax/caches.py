"""The user's cache folder, and the compiled programs that are kept there."""

import hashlib
import os
import pathlib
import platform
import sys

from ssd_jax.errors import UserError
from ssd_jax.hardware import instructions

# Bytes of all compiled programs together; the least recently used are removed first.
LARGEST_COMPILE_CACHE = 4 * 2**30
# Smaller programs take longer to look up than to compile.
LEAST_COMPILE_SECONDS = 0.1


def cache_folder() -> pathlib.Path:
    """The folder of cached files: SSD_JAX_CACHE, or `ssd_jax` in the user's cache folder.

    Raises `UserError` for a user without a home folder, as in some containers. A folder for
    temporary files is no substitute, because others could put programs there that we would run.
    """
    if folder := os.environ.get("SSD_JAX_CACHE"):
        return pathlib.Path(folder)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError as error:
        raise UserError(
            "there is no home folder for a cache: HOME is not set, and the system does not know "
            f"the user {os.getuid()}. Set SSD_JAX_CACHE to a folder that only this user can write."
        ) from error
    return pathlib.Path(base) / "ssd_jax"


def is_cached(path: pathlib.Path) -> bool:
    """Whether a path is in the cache folder; not if there is none."""
    try:
        return path.is_relative_to(cache_folder())
    except UserError:
        return False


def keep_compiled_programs() -> None:
    """Turns on JAX's compilation cache for this process and its children; before importing JAX.

    Nothing is changed if JAX_COMPILATION_CACHE_DIR is set, even to "", which turns the cache off,
    or if JAX is imported already, because then its importer has decided.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = cache_folder() / "compiled" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, UserError):
        return  # JAX would warn for every program that it cannot store
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # Set together with the folder, because JAX cannot limit one that was filled without a limit.
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LARGEST_COMPILE_CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(LEAST_COMPILE_SECONDS))


def keep_no_compiled_programs() -> None:
    """Turns the cache off for a run of several processes, unless the user has chosen its folder.

    Call it before the first program. The processes need not share the user's cache folder (even on
    one host each may be in a container), and only process 0 writes to JAX's cache. At the next
    start it alone would find the programs. The others would compile them and wait for the share of
    process 0 in trying out GPU kernels, which XLA divides among all processes.
    """
    import jax

    folder = jax.config.jax_compilation_cache_dir
    if folder and is_cached(pathlib.Path(folder)):
        jax.config.update("jax_enable_compilation_cache", False)


def _processor() -> str:
    """A name for the instruction set of this CPU.

    XLA compiles for the CPU it runs on, but JAX's cache keys do not include its instruction set,
    and several kinds of machines may share a home folder.
    """
    text = f"{platform.machine()} {platform.processor()} {instructions()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
