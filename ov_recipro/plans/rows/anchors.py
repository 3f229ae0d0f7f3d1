"""Anchors: tensors in which the pixels of feature maps are laid out in any order of axes.

Behind a detector's last maps, its numbers are moved (reshaped, transposed, split, joined over the
levels) and decoded pixel by pixel. What is moved stays where it is: a tensor is a few *pieces*,
each of them rows of a feature map's pixels, with a table of where in the tensor their numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np
from openvino import opset13 as ops

from ov_recipro.plans.nodes import Port, constant, gather, reshape
from ov_recipro.plans.rows.backgrounds import Background, FixedBackground
from ov_recipro.plans.rows.tensors import Indices, Mask, Rows, numbered, places_in


@dataclass(frozen=True)
class Piece:
    """Numbers that belong to the pixels of a feature map.

    Attributes:
        port: [P,Q], Q numbers of each active pixel, ordered by cell, row and column.
        active: [N,h,w], the active pixels.
        elements: [h*w,Q], where in the flattened tensor each pixel's numbers are; -1 for those that
            are not in it.
    """

    port: Port
    active: Mask
    elements: Indices

    @property
    def pixels(self) -> Indices:
        """The pixel of each row, [P]."""
        return np.flatnonzero(self.active) % len(self.elements)

    def chosen(self, columns: Indices) -> Piece:
        """Return some of the numbers of each pixel."""
        if np.array_equal(columns, np.arange(self.elements.shape[1])):
            return self
        return Piece(gather(self.port, columns, 1), self.active, self.elements[:, columns])

    def aligned(self, active: Mask, background: Background) -> Port:
        """Return the rows [P',Q] of more active pixels, of the background where there were none."""
        if np.array_equal(self.active, active):
            return self.port
        used = np.maximum(self.elements, 0)
        if isinstance(background, FixedBackground):
            table = constant(background.values.reshape(-1)[used])
        else:
            flat = reshape(background.port, [prod(list(background.port.shape))])
            table = gather(flat, used)
        places = places_in(numbered(self.active), active, int(self.active.sum()))
        return gather(ops.concat([self.port, table], 0).output(0), places)


@dataclass(frozen=True)
class Anchors:
    """A tensor over all cells, as pieces. What is in none of them does not depend on any cell.

    Attributes:
        shape: of the tensor, for one image.
        pieces: no two of which hold the same number.
        background: the tensor's values where no pixel is active.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    background: Background

    @classmethod
    def of_rows(cls, rows: Rows) -> Anchors:
        """Return a feature map as anchors."""
        channels, height, width = rows.background.shape
        pixels = np.arange(height * width)[:, None]
        elements = pixels + np.arange(channels)[None] * (height * width)
        piece = Piece(rows.port, rows.active, elements)
        return cls((1, channels, height, width), (piece,), rows.background)

    def as_rows(self) -> Rows | None:
        """Return the tensor as a feature map of its pixels; None where it is not one."""
        if len(self.shape) != 4 or self.shape[0] != 1 or not self.pieces:
            return None
        _, channels, height, width = self.shape
        pixels, first = height * width, self.pieces[0]
        if any(piece.active.shape[1:] != (height, width) for piece in self.pieces):
            return None
        elements = np.concatenate([piece.elements for piece in self.pieces], axis=1)
        order = np.argsort(elements[0] // pixels)
        expected = np.arange(pixels)[:, None] + np.arange(channels)[None] * pixels
        if not np.array_equal(elements[:, order], expected):
            return None
        active = np.logical_or.reduce([piece.active for piece in self.pieces])
        ports = [piece.aligned(active, self.background) for piece in self.pieces]
        port = ports[0] if len(ports) == 1 else ops.concat(ports, 1).output(0)
        joined = Piece(port, active, elements).chosen(order)
        return Rows(joined.port, active if len(ports) > 1 else first.active, self.background)

    @cached_property
    def owners(self) -> tuple[Indices, Indices, Indices]:
        """The piece, pixel and column of each element of the flattened tensor; -1 for none."""
        found = tuple(np.full(prod(self.shape), -1, np.int64) for _ in range(3))
        for number, piece in enumerate(self.pieces):
            pixels, columns = np.nonzero(piece.elements >= 0)
            elements = piece.elements[pixels, columns]
            found[0][elements], found[1][elements], found[2][elements] = number, pixels, columns
        return found[0], found[1], found[2]


def moved(
    values: Sequence[Anchors], sources: Indices, shape: tuple[int, ...], background: Background
) -> Anchors | None:
    """Return a tensor whose elements are copies of those of others; None where one has two copies.

    Args:
        values: the others.
        sources: for each element of the flattened result, its place in the others, flattened and in
            a row; -1 where it is in none.
        shape: of the result; background: its values where no pixel is active.
    """
    count = sum(prod(value.shape) for value in values)
    used = sources[sources >= 0]
    if len(used) and np.bincount(used, minlength=1).max() > 1:
        return None
    places = np.full(count, -1, np.int64)
    places[used] = np.flatnonzero(sources >= 0)
    pieces, start = [], 0
    for value in values:
        for piece in value.pieces:
            elements = np.where(piece.elements >= 0, places[start + piece.elements], -1)
            kept = np.flatnonzero((elements >= 0).any(axis=0))
            if len(kept):
                pieces.append(replace(piece, elements=elements).chosen(kept))
        start += prod(value.shape)
    return Anchors(shape, tuple(pieces), background)
