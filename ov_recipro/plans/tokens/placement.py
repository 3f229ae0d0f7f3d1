"""Where tokens stand: the image's own and those of every mask, as rows of one table.

Of mask n, all tokens but the prefix and a few *kept* ones are zero at the cut, and so are equal
to each other at every depth behind it. One row stands for all of them; attention counts it as
often as there are such tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from openvino import opset13 as ops

from ov_recipro.cut.cut_point import CutPoint
from ov_recipro.plans.nodes import Port, constant
from ov_recipro.plans.stream.stream_plan import GAUSSIAN, Mask
from ov_recipro.plans.tokens.demand import Demand
from ov_recipro.plans.verdict import PlanRefused

KEEPS_MOST = "the mask 'drop' keeps all tokens but one"

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """Which row of a table holds a token.

    Attributes:
        own: [T], the row of each of the image's own tokens, -1 where it is not held.
        masks: [N,L], the row of each token of each mask, -1 where it is not held.
        count: number of rows.
        masks_in_order: where the masks' rows stand in order: the first, and how many for each mask.
    """

    own: Indices
    masks: Indices
    count: int
    masks_in_order: tuple[int, int] | None = None


@dataclass(frozen=True)
class Masking:
    """What each mask holds at the cut.

    Attributes:
        weights: the factors, other than 1, by which a cell's vector is multiplied.
        at_cut: the rows there: own tokens, the cells' for each of the weights, and a row of zeros.
        multiplicity: [L], how many tokens each of a mask's rows stands for.
    """

    weights: tuple[float, ...]
    at_cut: Placement
    multiplicity: npt.NDArray[np.float64]

    @property
    def per_mask(self) -> int:
        """L, the number of rows of a mask."""
        return len(self.multiplicity)


def masking_of(cut: CutPoint, mask: Mask) -> Masking:
    """Return what the masks of a cut hold (see `plans.stream.Mask`)."""
    if mask == "drop":
        raise PlanRefused(KEEPS_MOST)
    height, width = cut.grid
    cells = height * width
    count = cut.prefix + cells
    numbers = np.arange(cells)
    weights: tuple[float, ...] = ()
    if mask == "cell":
        zero = count
        kept = cut.prefix + numbers[:, None]
    else:
        weights = tuple(sorted({float(each) for each in GAUSSIAN.ravel()}))
        zero = count + len(weights) * cells
        rows, columns = numbers // width, numbers % width
        kept = np.full((cells, 9), zero)
        for index, weight in enumerate(GAUSSIAN.ravel().tolist()):
            row, column = rows + index // 3 - 1, columns + index % 3 - 1
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            source = numbers if mask == "spread" else row * width + column
            held = count + weights.index(weight) * cells + source
            kept[inside, index] = held[inside]
    prefix = np.broadcast_to(np.arange(cut.prefix), (cells, cut.prefix))
    masks = np.concatenate([prefix, kept, np.full((cells, 1), zero)], axis=1)
    alike = count - cut.prefix - kept.shape[1]
    if alike < 0:
        raise PlanRefused(f"a mask '{mask}' keeps more cells than there are")
    multiplicity = np.append(np.ones(masks.shape[1] - 1), alike)
    if alike == 0:  # every token of the grid is kept: none is left to stand for
        masks, multiplicity = masks[:, :-1], multiplicity[:-1]
    return Masking(weights, Placement(np.arange(count), masks, zero + 1), multiplicity)


def table_at_cut(feature: Port, cut: CutPoint, weights: tuple[float, ...]) -> Port:
    """Return the rows at the cut [1,R,C] of an image's tokens [1,T,C]."""
    channels, cells = cut.shape[0], cut.cells.count
    tables = [feature]
    if weights:
        ends = [constant([n], np.int64) for n in (cut.prefix, cut.prefix + cells, 1, 1)]
        patches = ops.slice(feature, *ends)
        tables += [ops.multiply(patches, constant(weight)).output(0) for weight in weights]
    return ops.concat([*tables, constant(np.zeros((1, 1, channels)))], 1).output(0)


def behind_attention(masking: Masking, prefix: int, demand: Demand, own: bool) -> Placement:
    """Return where tokens stand behind attention: own ones, if wanted, then mask by mask."""
    cells, per_mask = masking.at_cut.masks.shape
    count = len(masking.at_cut.own)
    each = per_mask if demand is Demand.ALL else prefix
    held = (count if demand is Demand.ALL else prefix) if own else 0
    own_rows = np.full(count, -1)
    own_rows[:held] = np.arange(held)
    masks = np.full((cells, per_mask), -1)
    masks[:, :each] = held + np.arange(cells * each).reshape(cells, each)
    return Placement(own_rows, masks, held + cells * each, (held, each))


def moved(source: Placement, target: Placement) -> Indices:
    """Return the rows of `source`, in the order of `target`."""
    rows = np.full(target.count, -1)
    for have, want in ((source.own, target.own), (source.masks, target.masks)):
        rows[want[want >= 0]] = have[want >= 0]
    return rows
