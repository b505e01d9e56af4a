"""Weights of other frameworks -> our variables: readers, name maps, load report."""
