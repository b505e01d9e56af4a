"""A stand-in for Amazon SageMaker's built-in Object Detection: the same contract at /opt/ml."""
