"""Cells: the positions of a feature map that are kept or emptied one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Cells:
    """The cells of a feature map with height and width.

    Attributes:
        grid: (height, width); cell n is row n // width, column n % width.
    """

    grid: tuple[int, int]

    @property
    def count(self) -> int:
        """Number of cells."""
        height, width = self.grid
        return height * width

    def as_maps(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values of the cells [N,T] as maps [T,H,W]."""
        return np.ascontiguousarray(values.T).reshape(-1, *self.grid)
