"""Measurements of many images as means, and as differences between methods."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from ov_recipro.metrics import (
    FEWEST_IMAGES,
    Mean,
    Measurement,
    adcc,
    interval,
    resampled_means,
)
from ov_recipro.saliency import Floats

_KINDS = ("drop", "increase", "deletion", "insertion", "coherency", "complexity")
_IN_BOXES, _IN_GRIDS = ("pointing", "energy"), ("grid_energy", "grid_auc", "grid_peak")
_OPTIONAL = (("saco",), _IN_BOXES, _IN_GRIDS)  # each measured all together or not at all
_OF_ADCC = ("drop", "coherency", "complexity")
_POWER = 2.8  # standard errors: 5 % of false alarms and 20 % of misses


@dataclass(frozen=True)
class Difference:
    """How far a mean of one method is above another's, over the same images.

    Attributes:
        mean: the difference.
        needed: images that it takes to see a difference of this size, in four of five datasets, at
            95 % confidence; None where there is none, or where too few images tell.
    """

    mean: Mean
    needed: int | None


@dataclass(frozen=True)
class Summary:
    """A dataset's means; None where nothing of a kind was measured.

    Attributes:
        images: number of images; boxed: those with boxes; grids: those with a mosaic.
        flat: number of flat maps; undefined: of undefined coherencies, which count as 0.
        drop, increase, deletion, insertion, coherency, complexity, adcc, pointing, energy, saco,
            grid_energy, grid_auc, grid_peak: see `metrics.Measurement` and `metrics.adcc`.
    """

    images: int
    boxed: int
    grids: int
    flat: int
    undefined: int
    drop: Mean
    increase: Mean
    deletion: Mean
    insertion: Mean
    coherency: Mean
    complexity: Mean
    adcc: Mean
    pointing: Mean | None
    energy: Mean | None
    saco: Mean | None
    grid_energy: Mean | None
    grid_auc: Mean | None
    grid_peak: Mean | None


class Tally:
    """Measurements of many images, gathered in any order, also by several processes.

    The summary depends only on what was gathered, to the last digit.
    """

    def __init__(self) -> None:
        self._measured: dict[str, Measurement] = {}

    def update(self, image: str, measurement: Measurement) -> None:
        """Add an image's measurement; a second one of the same image replaces the first."""
        self._measured[image] = measurement

    def merge(self, other: Tally) -> None:
        """Add what another tally has gathered."""
        self._measured.update(other._measured)

    def __len__(self) -> int:
        return len(self._measured)

    def adcc_above(self, other: Tally) -> Mean | None:
        """Return how far this ADCC is above another tally's (see `differences`)."""
        names = self._shared(other)
        return self._differences(other, names, _OF_ADCC)["adcc"].mean if names else None

    def differences(self, other: Tally) -> dict[str, Difference] | None:
        """Return how far these means are above another tally's, over the images that both have.

        The intervals are of the differences, both resampled in the same way: what makes an image
        hard for both cancels. None where there is no such image.
        """
        names = self._shared(other)
        if not names:
            return None
        found = self._differences(other, names, _KINDS)
        for kinds in _OPTIONAL:
            both = [
                name
                for name in names
                if all(getattr(t._measured[name], kinds[0]) is not None for t in (self, other))
            ]
            found |= self._differences(other, both, kinds) if both else {}
        return found

    def _shared(self, other: Tally) -> list[str]:
        return sorted(self._measured.keys() & other._measured.keys())

    def _differences(
        self, other: Tally, names: list[str], kinds: tuple[str, ...]
    ) -> dict[str, Difference]:
        """Return the differences of some kinds of numbers over these images, and of their ADCC."""
        values, drawn = [], []
        for tally in (self, other):
            rows = [tally._measured[name] for name in names]
            numbers = np.array([[float(getattr(row, each) or 0) for each in kinds] for row in rows])
            means = [math.fsum(kind.tolist()) / len(names) for kind in numbers.T]
            resampled = resampled_means(numbers.T)
            if set(_OF_ADCC) <= set(kinds):
                places = [kinds.index(each) for each in _OF_ADCC]
                means.append(adcc(*(means[place] for place in places)))
                resampled = np.vstack([resampled, [adcc(*each) for each in resampled[places].T]])
            values.append(means)
            drawn.append(resampled)
        found = {}
        for place, name in enumerate([*kinds, "adcc"][: len(values[0])]):
            spread = drawn[0][place] - drawn[1][place]
            mean = Mean(values[0][place] - values[1][place], *interval(spread))
            found[name] = Difference(mean, _needed(mean.value, float(spread.std()), len(names)))
        return found

    def summary(self) -> Summary:
        """Return the means with their intervals.

        Raises:
            ValueError: nothing was gathered.
        """
        rows = [self._measured[image] for image in sorted(self._measured)]
        if not rows:
            raise ValueError("an empty tally has no means")
        columns = {
            each.name: np.array([float(getattr(row, each.name) or 0) for row in rows])
            for each in fields(Measurement)
        }
        count = len(rows)
        values = np.stack([columns[name] for name in _KINDS])
        drawn = resampled_means(values)
        means = {
            name: _mean(columns[name], resampled)
            for name, resampled in zip(_KINDS, drawn, strict=True)
        }
        overall = adcc(means["drop"].value, means["coherency"].value, means["complexity"].value)
        three = drawn[[_KINDS.index(each) for each in _OF_ADCC]]
        resampled = np.array([adcc(*each) for each in three.T])
        some: dict[str, Mean | None] = {}
        numbers = {}
        for kinds in _OPTIONAL:
            taken = np.array([getattr(row, kinds[0]) is not None for row in rows])
            numbers[kinds] = int(taken.sum())
            some |= dict.fromkeys(kinds)
            if taken.any():
                chosen = np.stack([columns[kind][taken] for kind in kinds])
                for kind, ours, drawn in zip(kinds, chosen, resampled_means(chosen), strict=True):
                    some[kind] = _mean(ours, drawn)
        return Summary(
            images=count,
            boxed=numbers[_IN_BOXES],
            grids=numbers[_IN_GRIDS],
            flat=sum(row.flat for row in rows),
            undefined=sum(row.coherency is None for row in rows),
            adcc=Mean(overall, *interval(resampled)),
            saco=some["saco"],
            pointing=some["pointing"],
            energy=some["energy"],
            grid_energy=some["grid_energy"],
            grid_auc=some["grid_auc"],
            grid_peak=some["grid_peak"],
            **means,
        )


def _mean(values: Floats, resampled: Floats) -> Mean:
    return Mean(math.fsum(values.tolist()) / len(values), *interval(resampled))


def _needed(difference: float, error: float, images: int) -> int | None:
    """Return `Difference.needed`; the standard error shrinks with the root of the images."""
    if not difference or not error or images < FEWEST_IMAGES:
        return None
    return math.ceil(images * (_POWER * error / difference) ** 2)
