"""Targets: what can be explained; each turns a model's logits into one score."""
