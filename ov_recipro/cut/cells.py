"""Cells: the positions of a feature map that are kept or emptied one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cells:
    """The cells of a feature map with height and width, or of several of the same image.

    Attributes:
        grid: (height, width); cell n is row n // width, column n % width.
    """

    grid: tuple[int, int]

    @property
    def count(self) -> int:
        """Number of cells."""
        height, width = self.grid
        return height * width

    def shares(self, size: tuple[int, int]) -> tuple[Floats, Floats]:
        """Return how much of each line of a map lies in each row and column of cells.

        What lies in cell (u, v) of the pixel (y, x) is ``rows[u, y] * columns[v, x]``.

        Args:
            size: (h, w) of the map, which covers what the cells cover.

        Returns:
            rows float32 [H,h] and columns [W,w], 0..1; each line's shares add up to 1.
        """
        rows, columns = (_shares(*each) for each in zip(self.grid, size, strict=True))
        return rows, columns

    def as_maps(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values of the cells [N,T] as maps [T,H,W]."""
        return np.ascontiguousarray(values.T).reshape(-1, *self.grid)


def _shares(cells: int, lines: int) -> Floats:
    cell, line = np.arange(cells)[:, None], np.arange(lines)[None]
    end = np.minimum((cell + 1) * lines, (line + 1) * cells)  # in 1 / (cells * lines), exact
    return np.asarray(
        np.maximum(end - np.maximum(cell * lines, line * cells), 0) / cells, np.float32
    )
