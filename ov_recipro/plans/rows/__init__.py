"""Plan `rows`: the tail, exactly, on the pixels that a cell can change.

A feature map with one cell kept differs from the zero map at one cell; so does every tensor of the
tail, on a region that grows slowly. Each tensor is a list of rows, one for each *active* pixel of
each cell's map, with the pixel's values; every other pixel is as in the *background*, the tail's
output on zeros. Which pixels are active follows from the graph alone, so all index tables are
constants. What no rule covers is computed densely from there on.
"""

from ov_recipro.plans.rows.compiler import Lowered, NotWorthIt
from ov_recipro.plans.rows.rows_cost import (
    NO_SAVING,
    downstream,
    estimate,
    key_of,
    macs_of,
    steps_of,
)
from ov_recipro.plans.rows.rows_plan import (
    FROZEN_BATCH,
    TOLERANCE,
    Logits,
    RowsPlan,
    Verdict,
    applies,
    build,
    inapplicable,
    keep_verdict,
    largest_error,
    read_verdict,
    verdict_file,
)

__all__ = [
    "FROZEN_BATCH",
    "NO_SAVING",
    "TOLERANCE",
    "Logits",
    "Lowered",
    "NotWorthIt",
    "RowsPlan",
    "Verdict",
    "applies",
    "build",
    "downstream",
    "estimate",
    "inapplicable",
    "keep_verdict",
    "key_of",
    "largest_error",
    "macs_of",
    "read_verdict",
    "steps_of",
    "verdict_file",
]
