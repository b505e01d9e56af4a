"""Pure functions on one image; callers `vmap` them. No Flax, no config, no files."""
