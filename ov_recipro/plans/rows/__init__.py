"""Plan `rows`: the tail, exactly, on the pixels that a cell can change.

A feature map with one cell kept differs from the zero map at one cell, and one with one cell
emptied from the image's own; so does every tensor of the tail, on a region that grows slowly. Each
tensor is a list of rows, one for each *active* pixel of each cell's map, with the pixel's values;
every other pixel is as in the *background*: the tail's values on zeros, or on the image's own map.
Which pixels are active follows from the graph alone, so all index tables are constants. What no
rule covers is computed densely from there on.
"""

from ov_recipro.plans.rows.compiler import Lowered
from ov_recipro.plans.rows.rows_cost import NO_SAVING, downstream, estimate, steps_of
from ov_recipro.plans.rows.rows_plan import FROZEN_BATCH, RowsPlan, applies, build, inapplicable

__all__ = [
    "FROZEN_BATCH",
    "NO_SAVING",
    "Lowered",
    "RowsPlan",
    "applies",
    "build",
    "downstream",
    "estimate",
    "inapplicable",
    "steps_of",
]
