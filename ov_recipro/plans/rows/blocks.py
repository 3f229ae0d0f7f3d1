"""Blocks of cells that are lowered together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.rows.tensors import Indices


@dataclass(frozen=True)
class Block:
    """Some cells: those in some rows and columns.

    Attributes:
        rows, columns: their numbers.
    """

    rows: Indices
    columns: Indices

    def cells(self, grid: tuple[int, int]) -> Indices:
        """Return the numbers of the cells in a grid, row by row."""
        return (self.rows[:, None] * grid[1] + self.columns).reshape(-1)

    def halves(self) -> list[Block]:
        """Return the block in two, or as it is where it has one cell."""
        if len(self.rows) >= len(self.columns):
            parts = np.array_split(self.rows, 2)
            return [Block(part, self.columns) for part in parts if len(part)]
        return [Block(self.rows, part) for part in np.array_split(self.columns, 2)]


def blocks_of(cells: Cells) -> list[Block]:
    """Group cells by how close they are to the border.

    The windows of a block's cells have one size. What a cell near the border reaches is cut off
    there, so that it would be computed for more pixels than it changes.
    """
    rows, columns = (_classes(count) for count in cells.grid)
    return [Block(each, other) for each in rows for other in columns]


def _classes(count: int) -> list[Indices]:
    lines = np.arange(count)
    distance = np.minimum(lines, lines[::-1])
    classes = np.searchsorted(np.array([(count + 2) // 6]), distance, side="right")
    return [lines[classes == number] for number in np.unique(classes)]


def sample(block: Block, grid: tuple[int, int]) -> list[int]:
    """Return cells of a block among which each row and each column of it is, twice, ascending."""
    rows, columns = block.rows, block.columns
    count = max(len(rows), len(columns))
    turns = (0, len(columns) // 2)
    found = {
        int(rows[n % len(rows)] * grid[1] + columns[(n + turn) % len(columns)])
        for n in range(count)
        for turn in turns
    }
    return sorted(found)
