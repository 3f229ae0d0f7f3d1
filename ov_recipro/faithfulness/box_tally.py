"""Means over the boxes of many photographs, and how far one method's lie above another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np

from ov_recipro.faithfulness.box_measure import BoxMeasurement
from ov_recipro.metrics import Mean, interval, resampled_means
from ov_recipro.saliency import Floats

Measured: TypeAlias = Mapping[str, Sequence[BoxMeasurement]]
"""For each photograph the measurements of its boxes, in the same order for every method."""


@dataclass(frozen=True)
class BoxMeans:
    """Means over boxes, or over their differences between two methods; see `BoxMeasurement`."""

    deletion: Mean
    insertion: Mean
    margin: Mean
    inner_deletion: Mean
    inner_insertion: Mean
    inner_margin: Mean
    energy: Mean
    pointing: Mean


@dataclass(frozen=True)
class BoxSummary:
    """A method's means.

    Attributes:
        images: number of photographs with boxes; boxes: of all of them; flat: number of flat maps.
        means: with bootstrap 95% intervals. Photographs are drawn, not boxes, since boxes of one
            photograph depend on each other.
    """

    images: int
    boxes: int
    flat: int
    means: BoxMeans


@dataclass(frozen=True)
class BoxDifference:
    """How far one method's means lie above another's.

    Attributes:
        images, boxes: numbers of those that both methods measured.
        means: of the differences, box by box, with intervals as in `BoxSummary`: what makes a box
            hard for both cancels.
    """

    images: int
    boxes: int
    means: BoxMeans


def summary(measured: Measured) -> BoxSummary | None:
    """Return a method's means; None where no photograph has a box.

    They depend on what was measured alone, not on its order.
    """
    names = sorted(name for name, boxes in measured.items() if boxes)
    if not names:
        return None
    found = [measured[name] for name in names]
    boxes = [each for several in found for each in several]
    return BoxSummary(
        images=len(names),
        boxes=len(boxes),
        flat=sum(each.flat for each in boxes),
        means=_means([_values(several) for several in found]),
    )


def above(measured: Measured, other: Measured) -> BoxDifference | None:
    """Return how far a method's means lie above another's, over the photographs that both have.

    None where there is no such photograph.
    """
    names = sorted(
        name for name, boxes in measured.items() if boxes and len(boxes) == len(other.get(name, ()))
    )
    if not names:
        return None
    differences = [_values(measured[name]) - _values(other[name]) for name in names]
    boxes = sum(each.shape[1] for each in differences)
    return BoxDifference(len(names), boxes, _means(differences))


def _values(boxes: Sequence[BoxMeasurement]) -> Floats:
    """Return each measure of each box, [kinds,boxes]."""
    names = [each.name for each in fields(BoxMeans)]
    return np.array([[float(getattr(box, name)) for box in boxes] for name in names])


def _means(values: Sequence[Floats]) -> BoxMeans:
    """Return the means of each photograph's values [kinds,boxes]."""
    sums = np.stack([each.sum(axis=1) for each in values], axis=1)
    counts = np.array([each.shape[1] for each in values], np.float64)
    means = sums.sum(axis=1) / counts.sum()
    found = [
        Mean(value, *interval(drawn))
        for value, drawn in zip(means.tolist(), resampled_means(sums, counts), strict=True)
    ]
    return BoxMeans(*found)
