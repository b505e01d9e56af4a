"""Pure functions on one image, which callers `vmap`. They use no Flax, config or files."""
