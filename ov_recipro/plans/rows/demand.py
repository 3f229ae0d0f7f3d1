"""Demand: the pixels that a cell can change and that some wanted numbers depend on.

Both are products of rows and columns: what a row of cells reaches and a wanted row reads, and
likewise for columns. So a region's rows of numbers are numbered by pairs: (row of cells, row) and
(column of cells, column), and all tables are made axis by axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ov_recipro.cut.cells import Cells
from ov_recipro.plans.nodes import Array
from ov_recipro.plans.rows import readings
from ov_recipro.plans.rows.blocks import Block
from ov_recipro.plans.rows.patches import extent
from ov_recipro.plans.rows.readings import Reading
from ov_recipro.plans.rows.rows_cost import Reach
from ov_recipro.plans.rows.tensors import Indices, Mask
from ov_recipro.plans.rows.windows import Window

Number = TypeVar("Number", bound=np.generic)
Lines: TypeAlias = tuple[Mask, Mask]
"""Some rows [h] and columns [w] of a feature map: the pixels that are in both."""


@dataclass
class Region:
    """Feature maps of one size that are computed at the same pixels.

    Attributes:
        size: (h,w).
        sources: the regions that they are computed from, by number, and how these are read.
        macs: multiply-accumulates for each pixel; floats: the most that an operation holds for one.
    """

    size: tuple[int, int]
    sources: list[tuple[int, Reading]]
    macs: int = 0
    floats: int = 0

    def holds(self, macs: int, floats: int) -> None:
        """Note an operation."""
        self.macs += macs
        self.floats = max(self.floats, floats)


@dataclass(frozen=True)
class Regions:
    """All regions of a tail.

    Attributes:
        cells: those of the cut.
        computed: those whose sources come before them; the first are the masked feature maps.
        levels: by size, those that end in a detector's numbers: nothing reads them.
    """

    cells: Cells
    computed: list[Region] = field(default_factory=list)
    levels: dict[tuple[int, int], Region] = field(default_factory=dict)
    _known: dict[tuple[tuple[int, bytes], ...], int] = field(default_factory=dict)

    def start(self, size: tuple[int, int]) -> int:
        """Return the number of the region of a masked feature map."""
        self.computed.append(Region(size, []))
        return len(self.computed) - 1

    def read_from(self, size: tuple[int, int], *sources: tuple[int, Reading]) -> int:
        """Return the number of a region; it is the same for what reads the same."""
        key = tuple(sorted((number, reading.key) for number, reading in sources))
        if key not in self._known:
            self._known[key] = len(self.computed)
            self.computed.append(Region(size, list(sources)))
        return self._known[key]

    def level(self, size: tuple[int, int], source: int) -> bool:
        """Let a level read one more region; return whether it is new."""
        new = size not in self.levels
        sources = self.levels.setdefault(size, Region(size, [])).sources
        if all(number != source for number, _ in sources):
            sources.append((source, Reading.of_itself(size)))
        return new

    @cached_property
    def reaches(self) -> list[Reach]:
        """What each cell reaches of each computed region."""
        found: list[Reach] = []
        for region in self.computed:
            found.append(self._reach(region, found))
        return found

    @cached_property
    def level_reaches(self) -> dict[tuple[int, int], Reach]:
        """What each cell reaches of each level."""
        return {size: self._reach(level, self.reaches) for size, level in self.levels.items()}

    def _reach(self, region: Region, known: list[Reach]) -> Reach:
        if not region.sources:
            return Reach.of(self.cells, region.size)
        rows, columns = (
            np.logical_or.reduce(each)
            for each in zip(
                *(
                    (
                        readings.reached(reading.rows, known[number].rows),
                        readings.reached(reading.columns, known[number].columns),
                    )
                    for number, reading in region.sources
                ),
                strict=True,
            )
        )
        return Reach(rows, columns)

    def needs(self, wanted: Mapping[tuple[int, int], Lines]) -> list[Lines]:
        """Return what of each computed region the wanted pixels of the levels depend on."""
        found = [(np.zeros(r.size[0], bool), np.zeros(r.size[1], bool)) for r in self.computed]
        above = [(self.levels[size], lines) for size, lines in wanted.items()]
        for region, lines in (*above, *zip(self.computed[::-1], found[::-1], strict=True)):
            for number, reading in region.sources:
                (rows, columns), (height, width) = found[number], self.computed[number].size
                rows |= readings.needed(reading.rows, lines[0], height)
                columns |= readings.needed(reading.columns, lines[1], width)
        return found


@dataclass(frozen=True)
class Active:
    """The pixels of a region that are computed, for a block of cells.

    Attributes:
        rows: [U,h], of each row of cells; columns: [V,w], of each column of cells.
    """

    rows: Mask
    columns: Mask

    @classmethod
    def of(cls, reach: Reach, needed: Lines, block: Block) -> Active:
        """Return what a block's cells reach of what is needed."""
        rows, columns = reach.rows[block.rows] & needed[0], reach.columns[block.columns] & needed[1]
        if not (rows.any() and columns.any()):  # a tensor of no elements is not for every device
            rows, columns = np.zeros_like(rows), np.zeros_like(columns)
            rows[0, 0] = columns[0, 0] = True
        return cls(rows, columns)

    @cached_property
    def row_pairs(self) -> tuple[Indices, Indices]:
        """The rows of cells and rows that go together, in order."""
        lines, pixels = np.nonzero(self.rows)
        return lines, pixels

    @cached_property
    def column_pairs(self) -> tuple[Indices, Indices]:
        """The columns of cells and columns that go together, in order."""
        lines, pixels = np.nonzero(self.columns)
        return lines, pixels

    @cached_property
    def row_numbers(self) -> Indices:
        """[U,h+1], the numbers of the pairs of rows; -1 where there is none, and beyond the end."""
        return _numbered(self.rows)

    @cached_property
    def column_numbers(self) -> Indices:
        """[V,w+1], the numbers of the pairs of columns."""
        return _numbered(self.columns)

    @property
    def across(self) -> int:
        """Number of pairs of columns."""
        return len(self.column_pairs[0])

    @cached_property
    def count(self) -> int:
        """P, the number of pixels of all cells, and some more (see `rounded`)."""
        return rounded(len(self.row_pairs[0]) * self.across)

    @property
    def pixels(self) -> npt.NDArray[np.int32]:
        """The pixel of each row of numbers, [P]."""
        width = self.columns.shape[1]
        found = self.row_pairs[1][:, None] * width + self.column_pairs[1]
        return self.filled(found.reshape(-1).astype(np.int32))

    def shares(self, rows: Array, columns: Array) -> Array:
        """Return products of what each row [U,h] and column [V,w] has, [P,1]."""
        found = rows[self.row_pairs][:, None] * columns[self.column_pairs]
        return self.filled(np.asarray(found.reshape(-1, 1), np.float32))

    def filled(self, table: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """Return a table of the pixels with P entries; what the further ones say is of no use."""
        found = np.zeros((self.count, *table.shape[1:]), table.dtype)
        found[: len(table)] = table
        return found

    def numbers(
        self, cells: tuple[Indices, Indices], lines: tuple[Indices, Indices]
    ) -> npt.NDArray[np.int32]:
        """Return where to read pixels in the P rows, the H*W of the background, and one beyond.

        Args:
            cells: rows [a] and columns [b] of cells in the block.
            lines: the rows [a,n] and columns [b,m] to read for each; -1 beyond the border.

        Returns:
            int32 [a,b,n,m].
        """
        height, width = self.rows.shape[1], self.columns.shape[1]
        down = self.row_numbers[cells[0][:, None], lines[0]].astype(np.int32)[:, None, :, None]
        across = self.column_numbers[cells[1][:, None], lines[1]].astype(np.int32)[:, None]
        y, x = lines[0].astype(np.int32)[:, None, :, None], lines[1].astype(np.int32)[:, None]
        own = down * np.int32(self.across) + across
        found = np.where(
            (down >= 0) & (across >= 0), own, (y * np.int32(width) + np.int32(self.count)) + x
        )
        if (y < 0).any() or (x < 0).any():
            outside = np.int32(self.count + height * width)
            found = np.where((y < 0) | (x < 0), outside, found)
        return found


def taps(source: Active, target: Active, reading: Reading) -> npt.NDArray[np.int32]:
    """Return where each row of numbers of a region reads those of its source, [P,taps]."""
    (u, y), (v, x) = target.row_pairs, target.column_pairs
    found = source.numbers((u, v), (reading.rows[y], reading.columns[x]))
    return target.filled(found.reshape(-1, reading.taps))


def weights(target: Active, reading: Reading) -> Array:
    """Return by how much each row of numbers counts what it reads, [P,taps,1]."""
    if reading.weights is None:
        raise ValueError("this reading has no weights")
    down = reading.weights[0][target.row_pairs[1]][:, None, :, None]
    across = reading.weights[1][target.column_pairs[1]][:, None]
    return target.filled(np.asarray((down * across).reshape(-1, reading.taps, 1), np.float32))


def windows(
    source: Active, target: Active, window: Window
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return windows that hold what the pixels of a region read, of one size for all cells.

    Returns:
        Where to read the pixels of the windows, [N,h,w] (see `Active.numbers`), and where in the
        results, [N,h',w'] flattened, each row of numbers is, [P].
    """
    cells, lines, begins, sizes = [], [], [], []
    for axis, active in enumerate((target.rows, target.columns)):
        not_empty = np.asarray(active.any(axis=1))
        _, size = extent(active, not_empty)
        size = min(rounded(size, 2), window.target[axis])
        begin = np.minimum(active.argmax(axis=1), active.shape[1] - size)
        own = np.flatnonzero(not_empty)
        length = (size - 1) * window.stride[axis] + (window.kernel[axis] - 1) * window.dilation[
            axis
        ]
        first = begin[own] * window.stride[axis] - window.pad[axis]
        read = first[:, None] + np.arange(length + 1)
        inside = (read >= 0) & (read < window.source[axis])
        cells.append(own)
        lines.append(np.where(inside, read, -1))
        begins.append(begin)
        sizes.append(size)
    found = source.numbers((cells[0], cells[1]), (lines[0], lines[1]))
    number = [np.cumsum(each.any(axis=1)) - 1 for each in (target.rows, target.columns)]
    (u, y), (v, x), area = target.row_pairs, target.column_pairs, sizes[0] * sizes[1]
    down = number[0][u] * (len(cells[1]) * area) + (y - begins[0][u]) * sizes[1]
    across = number[1][v] * area + (x - begins[1][v])
    places = (down[:, None] + across).reshape(-1).astype(np.int32)
    found = found.reshape(-1, *found.shape[2:])
    more = rounded(len(found), 4) - len(found)
    return np.pad(found, ((0, more), (0, 0), (0, 0))), target.filled(places)


def rounded(count: int, least: int = 32) -> int:
    """Return the next larger of few numbers, for which devices prepare an operation anew."""
    power = max(count, least) - 1
    step = max(1 << max(power.bit_length() - 3, 0), 1)
    return -(-max(count, least) // step) * step


def _numbered(pairs: Mask) -> Indices:
    found = np.full((len(pairs), pairs.shape[1] + 1), -1, np.int64)
    found[:, :-1][pairs] = np.arange(int(pairs.sum()))
    return found
