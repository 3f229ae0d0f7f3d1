"""Whether a map is right: measured on one image, verified, and over a dataset."""
