"""From files to batches on the mesh."""
