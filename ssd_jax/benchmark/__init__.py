"""Measures how fast a config runs on this machine, compared with what the machine can do."""
