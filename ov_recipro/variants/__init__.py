"""Variants of Recipro-CAM: other maps, made of the same kinds of runs."""

from typing import Literal, get_args

Variant = Literal["recipro-pair", "recipro-aumann"]
"""Recipro-CAM's keep-one beside drop-one; and the Aumann-Shapley share of each cell."""

VARIANTS: tuple[Variant, ...] = get_args(Variant)
