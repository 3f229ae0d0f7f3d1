"""Rows: a tensor of all cells' maps, held at its active pixels only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Port, constant, gather, reshape
from ov_recipro.plans.rows.backgrounds import Background

Mask: TypeAlias = npt.NDArray[np.bool_]
Indices: TypeAlias = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Rows:
    """A tensor [N,C,H,W] over N cells.

    Attributes:
        port: [P,C], the values at the active pixels, ordered by cell, row and column.
        active: [N,H,W], P of which are true.
        background: the values [C,H,W] at all other pixels.
        parts: the tensors that it joins along channels, where it was made by joining some.
    """

    port: Port
    active: Mask
    background: Background
    parts: tuple[Rows, ...] = ()

    @cached_property
    def positions(self) -> tuple[Indices, Indices]:
        """Cell and pixel (row * W + column) of each row, [P] each."""
        flat = np.flatnonzero(self.active)
        pixels = self.active.shape[1] * self.active.shape[2]
        return flat // pixels, flat % pixels

    @cached_property
    def lookup(self) -> Indices:
        """[N,H,W]: the number of the row at each pixel, -1 where there is none."""
        return numbered(self.active)

    @property
    def count(self) -> int:
        """P, the number of rows."""
        return int(self.active.sum())

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return self.background.shape[0]


@dataclass(frozen=True)
class PerCell:
    """A tensor with one entry per cell.

    Attributes:
        port: [N, ...], or [N+1, ...] with the unmasked feature map's entry last.
        whole: whether it has that last entry.
    """

    port: Port
    whole: bool = False


def aligned(rows: Rows, active: Mask) -> Port:
    """Return [P',C] for a wider set of active pixels, with background where `rows` has none."""
    if np.array_equal(rows.active, active):
        return rows.port
    return gather(with_background(rows), places_in(rows.lookup, active, rows.count))


def numbered(active: Mask) -> npt.NDArray[np.int32]:
    """Return the number of the row at each pixel [N,H,W], -1 where there is none."""
    numbers = np.full(active.shape, -1, np.int32)
    numbers[active] = np.arange(int(active.sum()))
    return numbers


def places_in(lookup: Indices, wanted: Mask, count: int) -> Indices:
    """Return where wanted pixels are, [P']: among the rows, or among the background behind them.

    Args:
        lookup: [N,H,W], the number of the row at each pixel, of some or all cells.
        wanted: [N,H,W], any pixels.
        count: how many rows there are.
    """
    pixels = np.flatnonzero(wanted) % (wanted.shape[1] * wanted.shape[2])
    numbers = lookup[wanted]
    return np.where(numbers >= 0, numbers, count + pixels)


def with_background(rows: Rows) -> Port:
    """Return [P+H*W,C]: the rows, and behind them the background's pixels."""
    return ops.concat([rows.port, rows.background.table], 0).output(0)


def differences(rows: Rows) -> Port:
    """Return [P,C]: the values minus the background's."""
    if rows.background.is_zero:
        return rows.port
    # a subtraction would lose its pinned precision
    negative = gather(rows.background.negative, rows.positions[1])
    return ops.add(rows.port, negative).output(0)


def plus_background(port: Port, background: Background, active: Mask) -> Port:
    """Return [P,C] plus the background [C,H,W] at the active pixels."""
    if background.is_zero:
        return port
    pixels = np.flatnonzero(active) % (active.shape[1] * active.shape[2])
    return ops.add(port, gather(background.table, pixels)).output(0)


def densified(rows: Rows, cells: slice) -> Port:
    """Return the full maps [n,C,H,W] of a range of cells."""
    _, height, width = rows.active.shape
    lookup = rows.lookup[cells]
    places = places_in(lookup, np.ones_like(lookup, bool), rows.count).reshape(-1, height * width)
    all_active = bool((places < rows.count).all())
    port = gather(rows.port if all_active else with_background(rows), places)
    port = ops.transpose(port, constant([0, 2, 1], np.int32)).output(0)
    return reshape(port, [len(places), rows.channels, height, width])


def summed_per_cell(port: Port, cells: Indices, count: int) -> Port:
    """Return [count,C]: the sums of the rows of each cell; `cells` [P] is sorted."""
    sizes = np.bincount(cells, minlength=count)
    if (sizes == 1).all():
        return port
    filled = np.flatnonzero(sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes[filled])[:-1]])
    numbers = constant(np.arange(len(cells)), np.int32)
    sums = ops.embedding_bag_offsets_sum(port, numbers, constant(offsets, np.int32)).output(0)
    if len(filled) == count:
        return sums
    places = np.full(count, len(filled))
    places[filled] = np.arange(len(filled))
    zeros = constant(np.zeros((1, port.get_partial_shape()[1].get_length())))
    return gather(ops.concat([sums, zeros], 0).output(0), places)
