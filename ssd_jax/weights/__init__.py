"""Foreign weights -> our tree: readers, name maps, load report."""
