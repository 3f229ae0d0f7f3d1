"""Plan `rows`: the tail, exactly, on the pixels that a cell can change.

A feature map with one cell kept differs from the zero map at one cell, and one with one cell
emptied from the image's own; so does every tensor of the tail, on a region that grows slowly. Each
tensor is a list of rows, one for each *active* pixel of each cell's map, with the pixel's values;
every other pixel is as in the *background*: the tail's values on zeros, or on the image's own map.
Which pixels are active follows from the graph alone, so all index tables are constants. What no
rule covers is computed densely from there on.

A detector's feature maps are masked jointly, and rows go on to its last numbers, whose pixels are
then laid out in any order of axes (`anchors`): there is nothing dense behind. Of the many values
under each mask only those that are asked for leave the graph (`scattered`).
"""

from ov_recipro.plans.rows.blocks import blocks_of, sample
from ov_recipro.plans.rows.compiler import FROZEN_BATCH, Lowered
from ov_recipro.plans.rows.joint_cost import estimates, sum_of
from ov_recipro.plans.rows.rows_cost import (
    NO_SAVING,
    Estimate,
    Reach,
    Step,
    downstream,
    estimate,
    steps_of,
)
from ov_recipro.plans.rows.rows_plan import (
    RowsPlan,
    applies,
    build,
    build_joint,
    inapplicable,
)
from ov_recipro.plans.rows.scattered import Scattered

__all__ = [
    "FROZEN_BATCH",
    "NO_SAVING",
    "Estimate",
    "Lowered",
    "Reach",
    "RowsPlan",
    "Scattered",
    "Step",
    "applies",
    "blocks_of",
    "build",
    "build_joint",
    "downstream",
    "estimate",
    "estimates",
    "inapplicable",
    "sample",
    "steps_of",
    "sum_of",
]
