"""A training run from its config to its report; `training.py` puts it together."""
