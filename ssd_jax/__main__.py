"""`python -m ssd_jax` is `ssd-jax`."""

import sys

from ssd_jax.cli import program

sys.exit(program())
