"""The plan `rows`: where it applies, and building it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.cut.bundle import Manifest
from ov_recipro.cut.cells import Cells
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.plans.nodes import Port, prepared
from ov_recipro.plans.rows.compiler import Lowered, lower
from ov_recipro.plans.rows.joint_compiler import lower_joint
from ov_recipro.plans.rows.narrowing import narrowed
from ov_recipro.plans.rows.scattered import Scattered, selecting
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.verdict import PlanRefused


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
    any_batch: bool = True,
) -> tuple[Lowered, RowsPlan]:
    """Compile a tail at batch 1 into a graph built on `feature` (see `compiler.lower`).

    Raises:
        PlanRefused: rows don't apply, save too little, or their compiler fails on this graph.
    """
    with _failures():
        lowered = lower(prepared(tail), feature, core, memory, plain_macs, plain, mask, any_batch)
    cells = int(np.prod(list(feature.shape)[2:]))
    return lowered, RowsPlan(cells, lowered.macs, plain_macs, lowered.dense_from)


def build_joint(
    tail: ov.Model,
    cells: Cells,
    core: ov.Core,
    memory: int,
    plain_macs: int,
    mask: Mask,
) -> tuple[ov.Model, Scattered, RowsPlan]:
    """Compile a detector's tail at batch 1 (see `joint_compiler`).

    Returns:
        A model from the tail's inputs [1,C,h,w], and which rows and numbers are wanted (see
        `Scattered.select`), to these numbers and, last, the values [V] without a mask; how they
        become values under masks; and the plan.

    Raises:
        PlanRefused: as of `build`.
    """
    features = [
        ops.parameter(list(port.shape), np.float32, name=port.get_node().get_friendly_name())
        for port in tail.inputs
    ]
    ports = [feature.output(0) for feature in features]
    with _failures():
        lowered = lower_joint(prepared(tail), ports, cells, core, memory, plain_macs, mask)
        chosen, pieces = narrowed(lowered.pieces, lowered.scattered.groups)
    asked, given = selecting(pieces)
    results = [ops.result(port) for port in (*given, lowered.plain)]
    model = ov.Model(results, [*features, *chosen, *asked], "rows")
    return model, lowered.scattered, RowsPlan(cells.count, lowered.macs, plain_macs, None)


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what the compiler raises on a graph that it does not expect into PlanRefused."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as failure:
        raise PlanRefused(f"{type(failure).__name__}: {str(failure).splitlines()[0]}") from failure
