"""Zones: wanted numbers that lie together in the image, and what computes them on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ov_recipro.plans.nodes import Array
from ov_recipro.plans.rows.blocks import Block
from ov_recipro.plans.rows.demand import Active, Lines
from ov_recipro.plans.rows.demand_graph import Size, Work
from ov_recipro.plans.rows.on_demand import LoweredOnDemand
from ov_recipro.plans.rows.tensors import Indices

Run: TypeAlias = Callable[[list[npt.NDArray[np.generic]]], Sequence[Array]]
"""From the tables, and which numbers of each piece are wanted, to these numbers."""

_HELD = 1 << 22  # numbers that an operation holds at once; more leave the processor's cache
_MANY = 12  # zones that are not worth looking for the best union of


@dataclass(frozen=True)
class Zone:
    """Some of the wanted values, and the pixels around them.

    Attributes:
        chosen: which of the wanted values, [n].
        lines: of each level the rows and columns that they lie in.
        macs: multiply-accumulates of all cells.
    """

    chosen: Indices
    lines: Mapping[Size, Lines]
    macs: int


@dataclass(frozen=True)
class OnDemand:
    """Values of a tail under each cell's mask, computed where they are wanted.

    Attributes:
        lowered: the graph and its tables.
    """

    lowered: LoweredOnDemand

    @property
    def values(self) -> int:
        """V, how many values the tail gives for one image."""
        return prod(self.lowered.end.shape)

    @cached_property
    def _owners(self) -> tuple[Indices, Indices, Indices]:
        return self.lowered.end.owners

    @cached_property
    def _sizes(self) -> list[Size]:
        """The size of each piece's level."""
        shapes = (piece.active.shape for piece in self.lowered.end.pieces)
        return [(height, width) for _, height, width in shapes]

    def zones(self, columns: Indices, max_macs: float = inf) -> list[Zone] | None:
        """Divide wanted values into zones, so that together they cost little.

        Args:
            columns: which of the tail's V values are wanted, int64 [n]. Those in no piece are the
                same under each mask, and are in no zone.
            max_macs: multiply-accumulates that the zones may take together.

        Returns:
            The zones; None where they would take more.
        """
        found: list[Zone] = []
        for each in self._groups(columns):
            found.append(self._zone(columns, each))
            if found[-1].macs > max_macs:  # merging only adds to it
                return None
        found = self._merged(columns, found)
        return found if sum(zone.macs for zone in found) <= max_macs else None

    def _groups(self, columns: Indices) -> list[Indices]:
        """Return which of the wanted values lie beside each other, group by group."""
        places = self._cells_of(columns)
        chosen = np.flatnonzero(places >= 0)
        if not len(chosen):
            return []
        labels = _together(places[chosen], self.lowered.regions.cells.grid)
        if labels.max() >= _MANY:
            return [chosen]
        return [chosen[labels == number] for number in range(labels.max() + 1)]

    def _merged(self, columns: Indices, found: list[Zone]) -> list[Zone]:
        """Join zones where that costs no more."""
        while len(found) > 1:
            best = None
            for i, one in enumerate(found):
                for other in found[i + 1 :]:
                    both = self._zone(columns, np.concatenate([one.chosen, other.chosen]))
                    saved = one.macs + other.macs - both.macs
                    if saved >= 0 and (best is None or saved > best[0]):
                        best = (saved, one, other, both)
            if best is None:
                break
            found = [each for each in found if each is not best[1] and each is not best[2]]
            found.append(best[3])
        return found

    def quarters(self, columns: Indices) -> list[Zone]:
        """Divide wanted values by the quarters of the image that they lie in."""
        height, width = self.lowered.regions.cells.grid
        rows, across = np.divmod(places := self._cells_of(columns), width)
        quarter = np.where(places < 0, -1, 2 * (2 * rows >= height) + (2 * across >= width))
        chosen = (np.flatnonzero(quarter == number) for number in range(4))
        return [self._zone(columns, each) for each in chosen if len(each)]

    def select(
        self,
        run: Run,
        columns: Indices,
        elsewhere: Array,
        zones: Sequence[Zone],
        cells: Indices | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return some of the values under the masks of some cells.

        Args:
            run: the graph, behind its feature maps and backgrounds.
            columns: int64 [n], which of the V values are wanted.
            elsewhere: [V], the values that a cell does not change.
            zones: of the wanted values, as `zones` finds them.
            cells: int64 [m], of which cells, in ascending order; of all by default.

        Returns:
            float32 [m,n].
        """
        grid = self.lowered.regions.cells.grid
        cells = np.arange(grid[0] * grid[1]) if cells is None else cells
        result = np.repeat(np.asarray(elsewhere[columns], np.float32)[None], len(cells), axis=0)
        for zone in zones:
            for work in self._works(zone.lines, cells):
                self._fill(run, work, zone, columns, cells, result)
        return result

    def _fill(
        self,
        run: Run,
        work: Work,
        zone: Zone,
        columns: Indices,
        cells: Indices,
        result: npt.NDArray[np.float32],
    ) -> None:
        """Write what a block of cells changes of a zone's values into the result [m,n]."""
        of_block = work.block.cells(self.lowered.regions.cells.grid)
        lines = np.full(len(of_block), -1)
        known = np.searchsorted(cells, of_block)
        known = np.minimum(known, len(cells) - 1)
        own = cells[known] == of_block
        lines[own] = known[own]
        owners, pixels, numbers = (table[columns[zone.chosen]] for table in self._owners)
        asked, found = [], []
        for piece, (size, end) in enumerate(zip(self._sizes, self.lowered.end.pieces, strict=True)):
            active, which = work.levels[size], np.flatnonzero(owners == piece)
            y, x = np.divmod(pixels[which], size[1])
            down, across = active.row_numbers[:, y], active.column_numbers[:, x]
            rows = down[:, None] * active.across + across[None]
            rows = np.where((down[:, None] >= 0) & (across[None] >= 0), rows, -1)
            rows = rows.reshape(len(of_block), len(which))
            cell, value = np.nonzero((rows >= 0) & (lines >= 0)[:, None])
            width = end.elements.shape[1]
            places = rows[cell, value] * width + numbers[which[value]]
            asked.append(places.astype(np.int32) if len(places) else np.zeros(1, np.int32))
            found.append((lines[cell], zone.chosen[which[value]]))
        given = run([*(table(work) for table in self.lowered.tables), *asked])
        for (line, column), values in zip(found, given, strict=True):
            result[line, column] = values[: len(line)]

    def _works(self, lines: Mapping[Size, Lines], cells: Indices) -> Iterator[Work]:
        """Divide what a zone needs into blocks of cells."""
        regions = self.lowered.regions
        grid = regions.cells.grid
        needs = regions.needs(lines)
        reaches = regions.level_reaches
        rows, columns = np.zeros(grid[0], bool), np.zeros(grid[1], bool)
        rows[cells // grid[1]] = columns[cells % grid[1]] = True
        useful = [np.zeros_like(rows), np.zeros_like(columns)]
        for size, wanted in lines.items():
            useful[0] |= (reaches[size].rows & wanted[0]).any(axis=1)
            useful[1] |= (reaches[size].columns & wanted[1]).any(axis=1)
        first = Block(np.flatnonzero(rows & useful[0]), np.flatnonzero(columns & useful[1]))
        left = [first] if len(first.rows) and len(first.columns) else []
        none = {size: tuple(np.zeros(n, bool) for n in size) for size in regions.levels}
        while left:
            block = left.pop()
            computed = [
                Active.of(reach, need, block)
                for reach, need in zip(regions.reaches, needs, strict=True)
            ]
            most = max(
                active.count * region.floats
                for active, region in zip(computed, regions.computed, strict=True)
            )
            if most > _HELD and len(block.rows) * len(block.columns) > 1:
                left += block.halves()[::-1]
                continue
            levels = {
                size: Active.of(reach, lines.get(size, none[size]), block)  # type: ignore[arg-type]
                for size, reach in reaches.items()
            }
            yield Work(block, computed, levels)

    def _zone(self, columns: Indices, chosen: Indices) -> Zone:
        owners, pixels, _ = (table[columns[chosen]] for table in self._owners)
        lines: dict[Size, Lines] = {}
        for piece, size in enumerate(self._sizes):
            own = pixels[owners == piece]
            if not len(own):
                continue
            known = lines.setdefault(size, (np.zeros(size[0], bool), np.zeros(size[1], bool)))
            for line, places in zip(known, np.divmod(own, size[1]), strict=True):
                line[places] = True
        return Zone(chosen, lines, self._macs(lines))

    def _macs(self, lines: Mapping[Size, Lines]) -> int:
        """Return the multiply-accumulates for some pixels of the levels, for all cells."""
        regions = self.lowered.regions
        return sum(
            int((reach.rows & rows).sum()) * int((reach.columns & columns).sum()) * region.macs
            for region, reach, (rows, columns) in zip(
                regions.computed, regions.reaches, regions.needs(lines), strict=True
            )
        )

    def _cells_of(self, columns: Indices) -> Indices:
        """Return the cell in the middle of each value's pixel; -1 where there is none."""
        grid = self.lowered.regions.cells.grid
        owners, pixels, _ = (table[columns] for table in self._owners)
        found = np.full(len(columns), -1)
        for piece, (height, width) in enumerate(self._sizes):
            own = owners == piece
            y, x = np.divmod(pixels[own], width)
            rows = (2 * y + 1) * grid[0] // (2 * height)
            found[own] = rows * grid[1] + (2 * x + 1) * grid[1] // (2 * width)
        return found


def _together(places: Indices, grid: Size) -> Indices:
    """Number the groups of cells that touch each other, and return each place's number."""
    left = set(places.tolist())
    labels = np.full(grid[0] * grid[1], -1)
    count = 0
    while left:
        open_ends = [left.pop()]
        while open_ends:
            place = open_ends.pop()
            labels[place] = count
            row, column = divmod(place, grid[1])
            around = {
                (row + down) * grid[1] + column + across
                for down in (-1, 0, 1)
                for across in (-1, 0, 1)
                if 0 <= column + across < grid[1]
            }
            open_ends += around & left
            left -= around
        count += 1
    return labels[places]
