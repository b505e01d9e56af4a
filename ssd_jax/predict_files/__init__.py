"""`ssd-jax predict`: from local or remote images and videos to files of detections."""
