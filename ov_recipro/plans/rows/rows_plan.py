"""The plan `rows`: where it applies, and building it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import openvino as ov

from ov_recipro.cut.bundle import Manifest
from ov_recipro.cut.points import CutPoint
from ov_recipro.plans.nodes import Port, prepared
from ov_recipro.plans.rows.compiler import Lowered, lower
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import PlanRefused

FROZEN_BATCH = "the tail's batch is frozen"


@dataclass(frozen=True)
class RowsPlan:
    """The tail on the pixels that a cell can change, all cells in one run.

    Attributes:
        cells: number of cells.
        macs: multiply-accumulates of all cells; plain_macs: of one plain inference.
        dense_from: the first operation computed densely; None where there is none.
    """

    cells: int
    macs: int
    plain_macs: int
    dense_from: str | None

    name = "rows"


def applies(manifest: Manifest, mask: Mask) -> str | None:
    """Return why the plan can't be used for a bundle; None where it can."""
    if mask not in ("cell", "drop"):
        return f"the mask '{mask}' keeps more than one cell"
    if not manifest.any_batch:
        return FROZEN_BATCH
    return inapplicable(manifest.cut)


def inapplicable(point: CutPoint) -> str | None:
    """Return why the plan can't be used at a cut; None where it can."""
    if point.bypass:
        return "tensors bypass the cut"
    if point.layout == "NTC":
        return "the cut is tokens, not a feature map"
    if point.layout == "NHWC":
        return "the feature map is laid out [N,H,W,C]"
    return None


def build(
    tail: ov.Model,
    feature: Port,
    core: ov.Core,
    memory: int,
    plain_macs: int,
    plain: bool,
    mask: Mask = "cell",
) -> tuple[Lowered, RowsPlan]:
    """Compile a tail at batch 1 into a graph built on `feature` (see `compiler.lower`).

    Raises:
        PlanRefused: rows don't apply, save too little, or their compiler fails on this graph.
    """
    try:
        lowered = lower(prepared(tail), feature, core, memory, plain_macs, plain, mask)
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as failure:
        raise PlanRefused(f"{type(failure).__name__}: {str(failure).splitlines()[0]}") from failure
    cells = int(np.prod(list(feature.shape)[2:]))
    return lowered, RowsPlan(cells, lowered.macs, plain_macs, lowered.dense_from)
