"""Pictures and plots: of boxes, data sets, curves, evaluations and runs."""
