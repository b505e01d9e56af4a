"""Metrics in NumPy, and the evaluation of a trained network."""
