"""Tensors of a tail over the image and all of its masks, and how they become one another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Port, constant, gather, reshape
from ov_recipro.plans.tokens.demand import Demand
from ov_recipro.plans.tokens.placement import Masking, Placement, behind_attention, moved
from ov_recipro.plans.tokens.roles import Counts
from ov_recipro.plans.verdict import PlanRefused


@dataclass(frozen=True)
class Table:
    """A tensor with the rows of a placement on its axis of tokens."""

    port: Port
    placement: Placement


@dataclass(frozen=True)
class PairTables:
    """Scores of attention: the masks' [N,...], and the image's own, if they are wanted."""

    masks: Port
    own: Port | None


@dataclass(frozen=True)
class Entries:
    """A tensor with one entry for each mask and, last, the image's own, if it is wanted."""

    port: Port


@dataclass
class Regrouper:
    """Regroups tables.

    Attributes:
        counts: the numbers of tokens; masking: what each mask holds.
        wants_own: whether the image's own tokens go through the tail too.
    """

    counts: Counts
    masking: Masking
    wants_own: bool
    _placements: dict[Demand, Placement] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """N, the number of masks."""
        return len(self.masking.at_cut.masks)

    @property
    def entries(self) -> int:
        """N, or N+1 with the image's own."""
        return self.cells + self.wants_own

    def behind(self, demand: Demand) -> Placement:
        """Return where tokens stand behind attention."""
        if demand not in self._placements:
            self._placements[demand] = behind_attention(
                self.masking, self.counts.prefix, demand, self.wants_own
            )
        return self._placements[demand]

    def moved(self, table: Table, axis: int, placement: Placement) -> Table:
        """Return the rows in the order of another placement."""
        if table.placement is placement:
            return table
        rows = moved(table.placement, placement)
        if (rows < 0).any():
            raise PlanRefused("a token that is read is not held")
        return Table(gather(table.port, rows, axis), placement)

    def group(self, table: Table, axis: int, demand: Demand = Demand.ALL, first: int = 0) -> Port:
        """Return the masks' rows [..., N, L, d], or [..., N, d, L], as products batch them.

        Args:
            table: the rows; `axis`: where they are, the last or the last but one.
            demand: which of a mask's tokens; `first`: how many of these to leave out in front.
        """
        shape = list(table.port.shape)
        if axis < len(shape) - 2:
            raise PlanRefused("an axis of tokens is not one of the last two")
        placement, each = table.placement, self._each(demand)
        if placement.masks_in_order is not None and placement.masks_in_order[1] == each:
            port = sliced(table.port, placement.masks_in_order[0], placement.count, axis)
        else:
            port = gather(table.port, placement.masks[:, :each].ravel(), axis)
        port = reshape(port, [*shape[:axis], self.cells, each, *shape[axis + 1 :]])
        port = sliced(port, first, each, axis + 1)
        if axis == len(shape) - 2:
            return port
        return transposed(port, [*range(axis - 1), axis, axis - 1, axis + 1])

    def ungrouped(
        self, masks: Port, own: Port | None, sizes: list[int], axis: int, demand: Demand
    ) -> Table:
        """Return the rows of what attention gives [..., N, L, d], behind the image's own.

        Args:
            masks: the masks' rows; `own`: the image's.
            sizes: of the tensor, apart from the axis of tokens; `axis`: that axis.
            demand: which tokens there are.
        """
        rows = [*sizes[:axis], self.cells * self._each(demand), *sizes[axis + 1 :]]
        port = reshape(masks, rows)
        if own is not None:
            port = ops.concat([own, port], axis).output(0)
        return Table(port, self.behind(demand))

    def entries_of(self, masks: Port, own: Port | None, sizes: list[int], place: int) -> Entries:
        """Return the masks' entries [N,...], of which N is axis `place`, and the image's last.

        Args:
            masks: what the masks give; `own`: what the image gives.
            sizes: of one entry [1,...]; `place`: the axis of N.
        """
        order = [place, *(axis for axis in range(len(masks.shape)) if axis != place)]
        port = reshape(transposed(masks, order), [self.cells, *sizes[1:]])
        return Entries(port if own is None else ops.concat([port, own], 0).output(0))

    def own(
        self, table: Table, axis: int, demand: Demand = Demand.ALL, first: int = 0
    ) -> Port | None:
        """Return the image's own rows, if they are wanted: they stand in front, in order."""
        if not self.wants_own:
            return None
        last = self.counts.tokens if demand is Demand.ALL else self.counts.prefix
        return sliced(table.port, first, last, axis)

    def picked(self, table: Table, axis: int, tokens: tuple[int, ...], sizes: list[int]) -> Entries:
        """Return single tokens of every mask and of the image; `sizes` are those of one entry."""
        shape = list(table.port.shape)
        rows = table.placement.masks[:, tokens]
        if self.wants_own:
            rows = np.concatenate([rows, table.placement.own[None, tokens]])
        port = gather(table.port, rows.ravel(), axis)
        port = reshape(port, [*shape[:axis], self.entries, len(tokens), *shape[axis + 1 :]])
        order = [axis, *range(axis), *range(axis + 1, len(shape) + 1)]
        return Entries(reshape(transposed(port, order), [self.entries, *sizes[1:]]))

    def _each(self, demand: Demand) -> int:
        return self.masking.per_mask if demand is Demand.ALL else self.counts.prefix


def transposed(port: Port, order: list[int]) -> Port:
    """Transpose, unless the order stays."""
    if order == list(range(len(order))):
        return port
    return ops.transpose(port, constant(order, np.int64)).output(0)


def sliced(port: Port, start: int, stop: int, axis: int) -> Port:
    """Slice along one axis, unless all of it stays."""
    if (start, stop) == (0, port.shape[axis]):
        return port
    return ops.slice(port, *(constant([n], np.int64) for n in (start, stop, 1, axis))).output(0)
