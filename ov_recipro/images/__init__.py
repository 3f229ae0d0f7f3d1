"""Pixels in, pixels out: reading images and videos, preparing them, drawing on them."""
