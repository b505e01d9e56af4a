"""A replacement for Amazon SageMaker's built-in Object Detection, with its contract at /opt/ml."""
