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
from ov_recipro.plans.rows.tensors import Indices, Mask, numbered

Numbers: TypeAlias = npt.NDArray[np.int32]
Run: TypeAlias = Callable[[list[Numbers]], list[Array]]
"""From what `Scattered.select` asks for to its numbers and, last, the plain values [V]."""


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
            a cell does not change the pixel. Pieces of a block with the same rows share one array.
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
    def groups(self) -> tuple[int, ...]:
        """The group of each array of rows (see `narrowing.narrowed`), block by block."""
        found, tables = list[int](), list[Numbers]()
        for of_block in self.rows:
            start = len(tables)
            for rows in of_block:
                same = (n for n in range(start, len(tables)) if tables[n] is rows)
                if (group := next(same, len(tables))) == len(tables):
                    tables.append(rows)
                found.append(group)
        return tuple(found)

    @property
    def inputs(self) -> int:
        """How many inputs the model has behind the feature maps."""
        return len(self._counts) + len(self.groups)

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        """The number of rows of each group."""
        tables = [table for of_block in self.rows for table in of_block]
        known = dict(zip(self.groups, tables, strict=True))
        return tuple(int(known[group].max()) + 1 for group in sorted(known))

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
            run: the model that `narrowing.narrowed` and `selecting` complete. It takes the rows
                that are wanted of each group, and the places of the wanted numbers in these.
            columns: int64 [n], which of the V values are wanted.
            cells: int64 [m], of which cells, in ascending order; of all by default.

        Returns:
            float32 [m,n].
        """
        cells = np.arange(self.count) if cells is None else cells
        owners, pixels, numbers = (table[columns] for table in self._owners)
        owned = [np.flatnonzero(owners == piece) for piece in range(len(self.elements))]
        wanted: list[tuple[Indices, Indices]] = []
        found: list[Indices] = []  # in the flattened result
        for of_block, rows in zip(self.cells, self.rows, strict=True):
            inside, lines = np.nonzero(of_block[:, None] == cells)
            for piece, chosen in enumerate(owned):
                table = rows[piece] if len(inside) == len(of_block) else rows[piece][inside]
                places = np.take(table, pixels[chosen], axis=1).ravel()
                active = np.flatnonzero(places >= 0)
                cell, which = np.divmod(active, max(len(chosen), 1))
                wanted.append((places[active], numbers[chosen[which]]))
                found.append(lines[cell] * len(columns) + chosen[which])
        *arrays, plain = run(self._asked(wanted))
        elsewhere = plain if self.elsewhere is None else self.elsewhere
        result = np.tile(np.asarray(elsewhere[columns], np.float32), len(cells))
        for into, values in zip(found, arrays, strict=True):
            result[into] = values[: len(into)]
        return result.reshape(len(cells), len(columns))

    def _asked(self, wanted: Sequence[tuple[Indices, Indices]]) -> list[Numbers]:
        """Return the rows of each group and, for each array, places in these, flattened.

        Args:
            wanted: for each array the row and the column of each number.
        """
        used = [np.zeros(count, bool) for count in self._counts]
        for group, (rows, _) in zip(self.groups, wanted, strict=True):
            used[group][rows] = True
        places = [np.cumsum(each) - 1 for each in used]
        widths = [elements.shape[1] for elements in self.elements] * len(self.cells)
        asked = [
            places[group][rows] * width + columns
            for group, width, (rows, columns) in zip(self.groups, widths, wanted, strict=True)
        ]
        chosen = [_filled(np.flatnonzero(each), len(each)) for each in used]
        return [*chosen, *(_filled(each) for each in asked)]

    def batches(self, run: Run, memory: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield all values under the masks of the next cells, float32 [b,V].

        Args:
            run: see `select`; it runs anew for each batch.
            memory: bytes for one of them.
        """
        size = max(1, memory // (4 * self.values))
        for start in range(0, self.count, size):
            cells = np.arange(start, min(start + size, self.count))
            yield self.select(run, np.arange(self.values), cells)


def _filled(places: Indices, most: int | None = None) -> Numbers:
    """Fill up with zeros to one of few lengths, `most` at most, since a device prepares for each.

    It is 1 at least: a dimension of 0 is not for every device.
    """
    count = max(len(places), 1)
    step = 1 << max(count.bit_length() - 3, 0)
    length = -(-count // step) * step
    filled = np.zeros(length if most is None else max(min(length, most), 1), np.int32)
    filled[: len(places)] = places
    return filled


def selecting(pieces: Sequence[Port]) -> tuple[list[ov.Node], list[Port]]:
    """Return what makes a model of rows give only those of their numbers that are asked for.

    All of them together take more memory than the rest of the model.

    Args:
        pieces: rows [P,Q].

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
            rows = numbered(piece.active).reshape(len(piece.active), -1)
            known.append((piece.active, rows))
        found.append(rows)
    return tuple(found)
