"""Plan `stream`: how many cells run at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Mask = Literal["cell", "spread", "weight", "drop"]
"""What is kept of a feature map: one cell (Eq. 5 of the paper); that cell's vector, copied to its
3x3 neighbours with Gaussian weights; the neighbours' own vectors times these weights; or all cells
but one."""

GAUSSIAN = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 16


@dataclass(frozen=True)
class StreamPlan:
    """All cells of a feature map in equal batches.

    Attributes:
        cells: number of cells, H*W; cell n = u*W + v is row u, column v.
        batch: cells per run of the tail. The last batch repeats the last cell where `batch` does
            not divide `cells`.
    """

    cells: int
    batch: int

    name = "stream"

    def batches(self) -> Iterator[npt.NDArray[np.int32]]:
        """Yield the cell numbers of each batch, int32 [batch]."""
        for start in range(0, self.cells, self.batch):
            numbers = np.arange(start, start + self.batch, dtype=np.int32)
            yield np.minimum(numbers, self.cells - 1)


def plan_stream(cells: int, bytes_per_cell: int, batch_memory: int) -> StreamPlan:
    """Choose the batch: the fewest runs that keep the activations within `batch_memory` bytes.

    The cells are then spread evenly over these runs, so that little or nothing is computed twice.
    """
    fitting = max(1, min(cells, batch_memory // max(1, bytes_per_cell)))
    runs = -(-cells // fitting)
    return StreamPlan(cells=cells, batch=-(-cells // runs))


def is_batched(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape at batch 1 has the batch as its first axis."""
    return len(shape) > 0 and shape[0] == 1


def batched(shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """Return the shape at `batch` of a tensor that has this shape at batch 1."""
    return (batch, *shape[1:]) if is_batched(shape) else tuple(shape)
