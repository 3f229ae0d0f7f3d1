"""Readings: which pixels of one feature map the pixels of another are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ov_recipro.plans.nodes import Array
from ov_recipro.plans.rows.resampling import Resampling
from ov_recipro.plans.rows.tensors import Indices, Mask
from ov_recipro.plans.rows.windows import Window


@dataclass(frozen=True)
class Reading:
    """The lines that an operation reads, along each axis.

    Attributes:
        rows: int32 [h',n], the input rows that each output row reads; -1 beyond the border.
        columns: int32 [w',m], likewise.
        weights: of the rows [h',n] and columns [w',m], where these are what the output is a sum of.
    """

    rows: Indices
    columns: Indices
    weights: tuple[Array, Array] | None = None

    @classmethod
    def of_window(cls, window: Window) -> Reading:
        """Return what a convolution or pool reads."""
        found = []
        for axis in (0, 1):
            lines = np.stack(list(window.lines(axis)), axis=1)
            inside = (lines >= 0) & (lines < window.source[axis])
            found.append(np.where(inside, lines, -1).astype(np.int32))
        return cls(found[0], found[1])

    @classmethod
    def of_resampling(cls, how: Resampling) -> Reading:
        """Return what a change of size reads."""
        rows, columns = _heaviest(how.rows), _heaviest(how.columns)
        weights = None if how.copies else (rows[1], columns[1])
        return cls(rows[0], columns[0], weights)

    @classmethod
    def of_itself(cls, size: tuple[int, int]) -> Reading:
        """Return what an operation on each pixel by itself reads."""
        rows, columns = (np.arange(lines, dtype=np.int32)[:, None] for lines in size)
        return cls(rows, columns)

    @property
    def key(self) -> bytes:
        """What is the same for equal readings, but for their weights."""
        return b"".join(str(a.shape).encode() + a.tobytes() for a in (self.rows, self.columns))

    @property
    def taps(self) -> int:
        """Number of input pixels that an output pixel reads."""
        return int(self.rows.shape[1] * self.columns.shape[1])


def reached(lines: Indices, active: Mask) -> Mask:
    """Return the output lines [n,h'] that read one of the active input lines [n,h]."""
    padded = np.pad(active, ((0, 0), (0, 1)))  # what -1 reads
    return np.asarray(padded[:, lines].any(axis=2))


def needed(lines: Indices, wanted: Mask, size: int) -> Mask:
    """Return the input lines [size] that the wanted output lines [h'] read."""
    found = np.zeros(size + 1, bool)
    found[lines[wanted]] = True
    return found[:size]


def _heaviest(weights: Array) -> tuple[Indices, Array]:
    """Return for each output line the input lines that it reads, and their weights, [h',n] each.

    Lines that read fewer are filled up with weights of 0.
    """
    most = int((weights != 0).sum(axis=1).max())
    order = np.argsort(weights == 0, axis=1, kind="stable")[:, :most]
    return order.astype(np.int32), np.take_along_axis(weights, order, axis=1)
