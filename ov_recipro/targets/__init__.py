"""Targets: what is explained, each a way from a model's outputs to one score."""
