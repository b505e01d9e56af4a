"""A functional Flax SSD object detector. Start reading at `ssd_jax/train/loop.py`."""

__version__ = "0.1.0"
