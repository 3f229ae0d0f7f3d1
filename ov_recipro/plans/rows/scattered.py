"""The values of a tail under each cell's mask, kept only where a cell changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Array, Port, constant, reshape
from ov_recipro.plans.rows.anchors import Anchors
from ov_recipro.plans.rows.backgrounds import FixedBackground
from ov_recipro.plans.rows.tensors import Indices, Mask

Numbers: TypeAlias = npt.NDArray[np.int32]
Run: TypeAlias = Callable[[list[Numbers]], list[Array]]
"""From which numbers of each array of rows are wanted to these, and, last, the plain values [V]."""


@dataclass(frozen=True)
class Scattered:
    """Tables that put the rows of a tail's last tensor where they belong.

    That tensor is in pieces (see `anchors.Piece`), each of which has an array of rows for each
    block of cells that is computed by itself.

    Attributes:
        count: N, the number of cells.
        values: V, how many values the tail gives for one image.
        elements: for each piece int32 [h*w,Q], the places of a pixel's numbers in the row of all
            values; -1 for those that are in none.
        elsewhere: [V], the values that a cell does not change; None where they are the image's own.
        cells: for each block of cells their numbers, [n].
        rows: for each block, for each piece, the row of each cell's pixels, int32 [n,h*w]; -1 where
            a cell does not change the pixel.
    """

    count: int
    values: int
    elements: tuple[Numbers, ...]
    elsewhere: Array | None
    cells: tuple[Indices, ...]
    rows: tuple[tuple[Numbers, ...], ...]

    @classmethod
    def of(cls, count: int, blocks: Sequence[tuple[Indices, Anchors]]) -> Scattered:
        """Return the tables of all cells.

        Args:
            count: the number of cells.
            blocks: the numbers of each block's cells, and the last tensor over these.

        Raises:
            ValueError: that tensor is in other pieces in one block than in another.
        """
        end = blocks[0][1]
        elements = tuple(piece.elements.astype(np.int32) for piece in end.pieces)
        for _, other in blocks:
            if len(other.pieces) != len(elements) or not all(
                np.array_equal(piece.elements, own)
                for piece, own in zip(other.pieces, elements, strict=True)
            ):
                raise ValueError("blocks of cells end in different pieces")
        known = end.background
        elsewhere = known.values.reshape(-1) if isinstance(known, FixedBackground) else None
        rows = tuple(_rows_of(each) for _, each in blocks)
        cells = tuple(each for each, _ in blocks)
        return cls(count, int(np.prod(end.shape)), elements, elsewhere, cells, rows)

    @cached_property
    def _owners(self) -> tuple[Numbers, Numbers, Numbers]:
        """The piece, pixel and column of each value, int32 [V] each; -1 where there is none."""
        owners, places, numbers = (np.full(self.values, -1, np.int32) for _ in range(3))
        for number, elements in enumerate(self.elements):
            pixels, columns = np.nonzero(elements >= 0)
            filled = elements[pixels, columns]
            owners[filled], places[filled], numbers[filled] = number, pixels, columns
        return owners, places, numbers

    def select(
        self, run: Run, columns: Indices, cells: Indices | None = None
    ) -> npt.NDArray[np.float32]:
        """Return some of the values under the masks of some cells.

        Args:
            run: the model that `selecting` completes.
            columns: int64 [n], which of the V values are wanted.
            cells: int64 [m], of which cells, in ascending order; of all by default.

        Returns:
            float32 [m,n].
        """
        cells = np.arange(self.count) if cells is None else cells
        owners, pixels, numbers = (table[columns] for table in self._owners)
        asked: list[Numbers] = []
        found: list[tuple[Indices, Indices]] = []
        for of_block, rows in zip(self.cells, self.rows, strict=True):
            inside, lines = np.nonzero(of_block[:, None] == cells)
            for piece, elements in enumerate(self.elements):
                chosen = np.flatnonzero(owners == piece)
                places = rows[piece][inside[:, None], pixels[chosen]]
                cell, which = np.nonzero(places >= 0)
                first = places[cell, which] * elements.shape[1]
                asked.append(np.asarray(first + numbers[chosen[which]], np.int32))
                found.append((lines[cell], chosen[which]))
        # a dimension of 0 is not for every device
        *arrays, plain = run([each if len(each) else np.zeros(1, np.int32) for each in asked])
        elsewhere = plain if self.elsewhere is None else self.elsewhere
        result = np.repeat(np.asarray(elsewhere[columns], np.float32)[None], len(cells), axis=0)
        for (line, column), values in zip(found, arrays, strict=True):
            result[line, column] = values[: len(line)]
        return result

    def batches(self, run: Run, memory: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield all values under the masks of the next cells, float32 [b,V].

        Args:
            run: the model that `selecting` completes; it runs anew for each batch.
            memory: bytes for one of them.
        """
        size = max(1, memory // (4 * self.values))
        for start in range(0, self.count, size):
            cells = np.arange(start, min(start + size, self.count))
            yield self.select(run, np.arange(self.values), cells)


def selecting(pieces: Sequence[Port]) -> tuple[list[ov.Node], list[Port]]:
    """Return what makes a model of rows give only those of their numbers that are asked for.

    All of them together take more memory than the rest of the model.

    Args:
        pieces: the rows [P,Q] of all pieces of the first block, then of the next.

    Returns:
        For each an input int32 [k], places in the rows, flattened, and an output [k].
    """
    asked = [ops.parameter(ov.PartialShape([-1]), np.int32) for _ in pieces]
    given = [
        ops.gather(reshape(port, [-1]), each, constant(0, np.int32)).output(0)
        for port, each in zip(pieces, asked, strict=True)
    ]
    return asked, given


def _rows_of(end: Anchors) -> tuple[Numbers, ...]:
    """Return for each piece the row of each cell's pixels (see `Scattered.rows`)."""
    known: list[tuple[Mask, Numbers]] = []
    found = []
    for piece in end.pieces:
        rows = next((n for active, n in known if np.array_equal(active, piece.active)), None)
        if rows is None:
            rows = np.full(piece.active.shape, -1, np.int32)
            rows[piece.active] = np.arange(int(piece.active.sum()))
            rows = rows.reshape(len(rows), -1)
            known.append((piece.active, rows))
        found.append(rows)
    return tuple(found)
