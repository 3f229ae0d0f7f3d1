"""The plan `tokens`: where it applies, and building it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import openvino as ov

from ov_recipro.cut.bundle import Manifest
from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.plans.nodes import Port, key_of, prepared
from ov_recipro.plans.stream import Mask
from ov_recipro.plans.tokens.builder import merged
from ov_recipro.plans.tokens.placement import KEEPS_MOST
from ov_recipro.plans.tokens.tokens_cost import estimate
from ov_recipro.plans.verdict import PlanRefused

ROUNDING = 0.06
"""Share of the largest logit that the check adds to the spread.

Where cells score nearly alike, float32 rounds by more than a thousandth of their spread.
"""

_CHECKED_INFERENCES = 20  # about what the check may cost, in plain inferences
_FEWEST_CHECKED = 8


@dataclass(frozen=True)
class TokensPlan:
    """The tail on the few tokens of each mask that differ, all masks in one run.

    Attributes:
        cells: number of cells.
        macs: multiply-accumulates that all masks add; plain_macs: those of one plain inference.
    """

    cells: int
    macs: int
    plain_macs: int

    name = "tokens"


def applies(manifest: Manifest, mask: Mask) -> str | None:
    """Return why the plan can't be used for a bundle; None where it can."""
    if mask == "drop":
        return KEEPS_MOST
    return inapplicable(manifest.cut)


def inapplicable(point: CutPoint) -> str | None:
    """Return why the plan can't be used at a cut; None where it can."""
    if point.layout != "NTC":
        return "the cut is a feature map, not tokens"
    return "tensors bypass the cut" if point.bypass else None


def added_macs(model: ov.Model, start: Port, end: Port, cut: CutPoint, mask: Mask = "cell") -> int:
    """Count the multiply-accumulates that all masks add (see `tokens_cost.estimate`).

    Raises:
        PlanRefused: an operation tells tokens apart, or is not covered.
    """
    with _refusing():
        return estimate(model.get_ordered_ops(), key_of(start), end, cut, mask)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what OpenVINO and NumPy raise on a graph of another form into PlanRefused."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as failure:
        raise PlanRefused(f"{type(failure).__name__}: {str(failure).splitlines()[0]}") from failure


def build(
    tail: ov.Model, feature: Port, cut: CutPoint, mask: Mask, plain_macs: int, plain: bool
) -> tuple[Port, TokensPlan]:
    """Compile a tail at batch 1 into a graph built on `feature` (see `builder.merged`).

    Raises:
        PlanRefused: an operation tells tokens apart, or is not covered.
    """
    with _refusing():
        model = prepared(tail)
        start, end = model.get_parameters()[0].output(0), model.get_results()[0].input_value(0)
        macs = added_macs(model, start, end, cut, mask)
        logits = merged(model, feature, cut, mask, plain)
    return logits, TokensPlan(cut.cells.count, macs, plain_macs)


def sample(manifest: Manifest) -> list[int]:
    """Return the cells that the check compares: corners, edges, the centre and random ones.

    All masks go through the same operations, so that an error shows in every cell; where the dense
    plan is cheap, all are compared.
    """
    height, width = manifest.cut.grid
    cells = height * width
    stream = cells if manifest.cost is None else manifest.cost.stream
    count = int(_CHECKED_INFERENCES * cells / max(1.0, stream - 1))
    places = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    places += [(height // 2, width // 2), (0, width // 2), (height // 2, 0)]
    first = [row * width + column for row, column in places]
    others = np.random.default_rng(0).permutation(cells).tolist()
    return list(dict.fromkeys([*first, *others]))[: max(count, _FEWEST_CHECKED)]
