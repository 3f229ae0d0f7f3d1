"""Boxes of a detector: why this one, and why not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_recipro.cut.box_layout import BoxLayout, Indices
from ov_recipro.explanation import Prediction, Target
from ov_recipro.images.preprocess import Window
from ov_recipro.saliency import Floats, Score
from ov_recipro.targets.base import extended
from ov_recipro.targets.candidates import BoxEdges, columns, decode, iou

NEAR = 0.3
"""Least IoU with a box of the candidates that may take its place where cells are masked."""

_FEWEST_NEAR = 32  # candidates that are looked at for a box that few or none lie near
_WEAK = 0.01  # share of a box's score below which what a cell's loss costs says little
_CHANGED = 1e-3  # share of the largest change from which on a cell counts as changing the score


@dataclass(frozen=True)
class Place:
    """The cell that a candidate box belongs to: its level, counted from 0, its row and column."""

    level: int
    row: int
    column: int


@dataclass(frozen=True)
class DetectedBox(Prediction):
    """A box that a detector predicts.

    Attributes:
        box: left, top, width and height in pixels of the image.
    """

    box: tuple[float, float, float, float]

    @property
    def outline(self) -> tuple[float, float, float, float]:
        """The box."""
        return self.box


@dataclass(frozen=True)
class Box(Target):
    """The record of a box.

    Attributes:
        box: left, top, width and height in pixels of the image.
        number: its place among the predictions, from 1; None for one that the user drew.
        missed: the detector does not predict it: the map shows what speaks against it, cells
            whose loss raises its score.
        anchor: the cell of its candidate, where the model's layout shows that.
        lost: the largest value of its map, in units of the score: with cells emptied or the image
            masked, the most that its score falls, or rises if it is missed.
        reach: number of cells whose mask changes its score; None where no cells are masked.
    """

    box: tuple[float, float, float, float] = (0, 0, 0, 0)
    number: int | None = None
    missed: bool = False
    anchor: Place | None = None
    lost: float = 0.0
    reach: int | None = None

    @property
    def outline(self) -> tuple[float, float, float, float]:
        """The box."""
        return self.box

    @property
    def identity(self) -> Any:
        """What tells it from other boxes."""
        return [self.index, self.box, self.missed]

    @property
    def name(self) -> str:
        """What tells it from the other boxes of an image, in file names."""
        if self.number is not None:
            return f"box{self.number}"
        return "box-" + "-".join(f"{edge:.0f}" for edge in self.box)

    def remarks(self, cells: int, score: Score, mask: str = "cell") -> list[str]:
        """Return, in words, what speaks against the map."""
        if self.runs is not None:
            return super().remarks(cells, score, mask)
        if self.missed:
            nothing = ["Dropping a cell never raises this box's score: this map says nothing."]
            return nothing if self.lost <= 0 else []
        if self.lost < _WEAK * self.score:
            share = 100 * self.lost / self.score
            return [f"Weak signal: the loss of a cell costs {share:.2g} % of the score at most."]
        return []


@dataclass(frozen=True)
class BoxTarget:
    """A box's score: the largest IoU(b_a, b) * p_a over candidates a, with p_a their class score.

    That is D-RISE's similarity (Petsiuk et al. 2021, Eq. 3) without the cosine of the classes'
    scores. The candidates are those whose boxes overlap b where nothing is masked.

    Attributes:
        index: the class; label: its name, where names are known.
        edges: left, top, right and bottom of b, in pixels of the model's input.
        layout: how the model's outputs hold candidates.
        anchors: the candidates, ascending; None for all, where the model chooses them itself.
        box: b, as left, top, width and height in pixels of the image.
        number: see `Box`; missed: likewise.
        anchor: the candidate that b belongs to.
    """

    index: int
    label: str | None
    edges: BoxEdges
    layout: BoxLayout
    anchors: Indices | None
    box: tuple[float, float, float, float]
    number: int | None
    missed: bool
    anchor: int

    @cached_property
    def reads(self) -> Indices | None:
        """The numbers among a run's outputs that its score is computed from; None for all."""
        if self.anchors is None:
            return None
        return columns(self.layout, self.anchors, np.array([self.index]))

    def scores(self, outputs: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:  # noqa: ARG002
        """Return the box's score in each run, [N], 0..1; `outputs` are what it `reads`."""
        found = decode(outputs, self.layout, self.anchors, np.array([self.index]), self.reads)
        overlap = iou(found.boxes, self.edges)
        return np.asarray((overlap * found.scores[..., 0]).max(axis=1, initial=0), np.float64)

    def described(self, measured: Target, saliency: Floats, raw: Floats) -> Target:  # noqa: ARG002
        """Return the record, with the box."""
        place = self.layout.place(self.anchor)
        reach = int((np.abs(raw) > _CHANGED * float(np.abs(raw).max())).sum())
        return extended(
            Box,
            measured,
            box=self.box,
            number=self.number,
            missed=self.missed,
            anchor=None if place is None else Place(*place),
            lost=float(raw.max()),
            reach=None if measured.runs is not None else reach,
        )


def near(boxes: Floats, edges: BoxEdges) -> Indices:
    """Return the candidates whose boxes [A,4] may take the place of a box, ascending."""
    overlap = iou(boxes, edges)
    found = np.flatnonzero(overlap > NEAR)
    if len(found) < _FEWEST_NEAR:
        best = np.argsort(-overlap, kind="stable")[:_FEWEST_NEAR]
        found = np.union1d(found, best[overlap[best] > 0] if overlap.any() else best)
    return np.asarray(found, np.int64)


def in_image(edges: BoxEdges, window: Window, size: tuple[int, int]) -> BoxEdges:
    """Return a box as left, top, width and height in pixels of the image.

    Args:
        edges: left, top, right and bottom in pixels of the model's input.
        window: the model's input in pixels of the image; size: (height, width) of the input.
    """
    left, top, right, bottom = window
    x, y = (right - left) / size[1], (bottom - top) / size[0]
    x0, y0, x1, y1 = edges
    found = (left + x0 * x, top + y0 * y, (x1 - x0) * x, (y1 - y0) * y)
    return round(found[0], 1), round(found[1], 1), round(found[2], 1), round(found[3], 1)


def in_input(box: Sequence[float], window: Window, size: tuple[int, int]) -> BoxEdges:
    """Return a box of the image as left, top, right and bottom in pixels of the model's input."""
    left, top, right, bottom = window
    x, y = size[1] / (right - left), size[0] / (bottom - top)
    x0, y0, width, height = box
    return (x0 - left) * x, (y0 - top) * y, (x0 + width - left) * x, (y0 + height - top) * y


def is_missed(target: object) -> bool:
    """Whether a target is a box that the detector does not predict."""
    return isinstance(target, Box | BoxTarget) and target.missed


def signed_losses(
    targets: Sequence[Any], losses: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return what cells' losses cost the targets [N,T]; of missed boxes, what they gain."""
    signs = [-1 if is_missed(target) else 1 for target in targets]
    return np.asarray(losses * np.array(signs, np.float64))


def edges_of(targets: Sequence[Any]) -> list[BoxEdges] | None:
    """Return the boxes of targets, in pixels of the model's input; None of other targets."""
    return [target.edges for target in targets if isinstance(target, BoxTarget)] or None
