"""Figures of boxes, data sets, curves, evaluations and runs."""
