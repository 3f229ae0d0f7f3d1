"""Splitting a model: cut it, prove the cut, cache the bundle."""
