"""Cells and maps: cell n is row n // width, column n % width."""

from __future__ import annotations

import numpy as np
import pytest

from ov_recipro.cut.cells import Cells


def test_values_of_cells_become_maps() -> None:
    cells = Cells((2, 3))
    assert cells.count == 6
    values = np.arange(12.0).reshape(6, 2)
    maps = cells.as_maps(values)
    assert maps.shape == (2, 2, 3)
    assert maps[1, 1, 0] == values[3, 1]


@pytest.mark.parametrize(("grid", "size"), [((2, 3), (4, 6)), ((4, 6), (2, 3)), ((3, 5), (4, 7))])
def test_shares_are_the_overlap_of_cells_and_pixels(
    grid: tuple[int, int], size: tuple[int, int]
) -> None:
    rows, columns = Cells(grid).shares(size)
    for found, cells, lines in ((rows, grid[0], size[0]), (columns, grid[1], size[1])):
        assert np.allclose(found.sum(axis=0), 1)
        for cell in range(cells):
            fine = np.zeros(cells * lines)
            fine[cell * lines : (cell + 1) * lines] = 1
            assert np.array_equal(found[cell], fine.reshape(lines, cells).mean(axis=1, dtype="f4"))
