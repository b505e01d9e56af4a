"""A trained detector as one folder: written and checked, opened again by any engine."""
