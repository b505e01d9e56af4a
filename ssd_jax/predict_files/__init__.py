"""`ssd-jax predict`: from pictures and films, wherever they lie, to files of detections."""
