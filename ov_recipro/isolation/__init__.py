"""Isolation: a model opened and run here, or in a process of its own that may die."""
