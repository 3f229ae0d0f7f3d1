"""Cells and maps: cell n is row n // width, column n % width."""

from __future__ import annotations

import numpy as np

from ov_recipro.cut.cells import Cells


def test_values_of_cells_become_maps() -> None:
    cells = Cells((2, 3))
    assert cells.count == 6
    values = np.arange(12.0).reshape(6, 2)
    maps = cells.as_maps(values)
    assert maps.shape == (2, 2, 3)
    assert maps[1, 1, 0] == values[3, 1]
