"""Splitting a model: cut it, prove it, keep it."""
