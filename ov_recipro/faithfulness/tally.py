"""Measurements of many images as means, and as differences between methods."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from ov_recipro.metrics import Mean, Measurement, adcc, interval, resampled_means
from ov_recipro.saliency import Floats

_KINDS = ("drop", "increase", "deletion", "insertion", "coherency", "complexity", "saco")
_OF_ADCC = ("drop", "coherency", "complexity")
_POWER = 2.8  # standard errors: 5 % of false alarms and 20 % of misses


@dataclass(frozen=True)
class Difference:
    """How far a mean of one method is above another's, over the same images.

    Attributes:
        mean: the difference.
        needed: images that it takes to see a difference of this size, in four of five datasets, at
            95 % confidence; None where there is none.
    """

    mean: Mean
    needed: int | None


@dataclass(frozen=True)
class Summary:
    """A dataset's means; None where nothing of a kind was measured.

    Attributes:
        images: number of images; boxed: those with boxes.
        flat: number of flat maps; undefined: of undefined coherencies, which count as 0.
        drop, increase, deletion, insertion, coherency, complexity, adcc, pointing, energy, saco:
            see `metrics.Measurement` and `metrics.adcc`.
    """

    images: int
    boxed: int
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
        found = self.differences(other)
        return None if found is None else found["adcc"].mean

    def differences(self, other: Tally) -> dict[str, Difference] | None:
        """Return how far these means are above another tally's, over the images that both have.

        The intervals are of the differences, both resampled in the same way: what makes an image
        hard for both cancels. None where there is no such image.
        """
        names = sorted(self._measured.keys() & other._measured.keys())
        if not names:
            return None
        values, drawn = [], []
        for tally in (self, other):
            rows = [tally._measured[name] for name in names]
            kinds = np.array([[float(getattr(row, each) or 0) for each in _KINDS] for row in rows])
            means = [math.fsum(kind.tolist()) / len(names) for kind in kinds.T]
            resampled = resampled_means(kinds.T)
            values.append([*means, adcc(*(means[_KINDS.index(each)] for each in _OF_ADCC))])
            terms = resampled[[_KINDS.index(each) for each in _OF_ADCC]]
            drawn.append(np.vstack([resampled, [adcc(*three) for three in terms.T]]))
        found = {}
        for place, name in enumerate((*_KINDS, "adcc")):
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
        boxed = np.array([row.pointing is not None for row in rows])
        count = len(rows)
        names = ("drop", "increase", "deletion", "insertion", "coherency", "complexity")
        values = np.stack([columns[name] for name in names])
        drawn = resampled_means(values)
        means = {
            name: _mean(columns[name], resampled)
            for name, resampled in zip(names, drawn, strict=True)
        }
        overall = adcc(means["drop"].value, means["coherency"].value, means["complexity"].value)
        resampled = np.array([adcc(*three) for three in drawn[[0, 4, 5]].T])
        saco = None
        if all(row.saco is not None for row in rows):
            saco = _mean(columns["saco"], resampled_means(columns["saco"][None])[0])
        in_boxes: dict[str, Mean | None] = {"pointing": None, "energy": None}
        if boxed.any():
            pair = np.stack([columns[name][boxed] for name in in_boxes])
            for name, ours, resample in zip(in_boxes, pair, resampled_means(pair), strict=True):
                in_boxes[name] = _mean(ours, resample)
        return Summary(
            images=count,
            boxed=int(boxed.sum()),
            flat=sum(row.flat for row in rows),
            undefined=sum(row.coherency is None for row in rows),
            adcc=Mean(overall, *interval(resampled)),
            pointing=in_boxes["pointing"],
            energy=in_boxes["energy"],
            saco=saco,
            **means,
        )


def _mean(values: Floats, resampled: Floats) -> Mean:
    return Mean(math.fsum(values.tolist()) / len(values), *interval(resampled))


def _needed(difference: float, error: float, images: int) -> int | None:
    """Return `Difference.needed`; the standard error shrinks with the root of the images."""
    return math.ceil(images * (_POWER * error / difference) ** 2) if difference else None
