"""Runtimes: each module wraps one inference library."""
