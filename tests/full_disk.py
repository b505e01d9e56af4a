"""As a full disk: a write beyond the limit fails, in the middle of a file."""

import contextlib
import resource


@contextlib.contextmanager
def largest_file(size):
    """Limits the size of the files that this process writes, in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
