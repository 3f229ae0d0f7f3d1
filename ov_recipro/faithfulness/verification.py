"""Verifying an explanation: is its map better than chance at finding what the model relies on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal
from zlib import crc32

import numpy as np

from ov_recipro.errors import TargetError
from ov_recipro.explanation import Explanation
from ov_recipro.faithfulness.measure import curves, measure
from ov_recipro.methods import AnyTarget, Subject
from ov_recipro.metrics import Measurement, upsampled
from ov_recipro.saliency import Floats
from ov_recipro.targets.classes import ClassTarget

Verdict = Literal["supported", "weak", "no better than random"]

RANDOM_MAPS = 8
STEPS = 14  # of a curve
_SUPPORTED, _WEAK = 2.0, 1.0

RULE = (
    f"insertion minus deletion, against {RANDOM_MAPS} random maps: supported if more than "
    f"{_SUPPORTED:g} of their standard deviations above their mean, weak if more than {_WEAK:g}; "
    "else, or if the map is flat, no better than random"
)


@dataclass(frozen=True)
class Verification:
    """The evidence for and against a target's map.

    Attributes:
        measured: the map, by the profile "poppi" with curves of 14 steps.
        random_deletion, random_insertion: those of each random map on the same grid.
        deviations: how far insertion minus deletion is above that of random maps; see `rule`.
        verdict: by `rule`.
        rule: in words.
    """

    measured: Measurement
    random_deletion: tuple[float, ...]
    random_insertion: tuple[float, ...]
    deviations: float
    verdict: Verdict
    rule: str = RULE


def verify(subject: Subject, explanation: Explanation) -> tuple[Verification, ...]:
    """Verify an explanation's maps, target by target.

    Args:
        subject: the explainer's model.
        explanation: of an image.

    Raises:
        ReciproError: the explanation is of a tensor, or the model gives NaN.
    """
    if explanation.image is None:
        raise TargetError("A tensor was explained, not an image: it can't be verified.")
    image, _ = subject.prepare(explanation.image)
    return tuple(
        verify_target(subject, image, target.index if isinstance(target, ClassTarget) else target)
        for target in explanation.scored
    )


def verify_target(subject: Subject, image: Floats, target: AnyTarget) -> Verification:
    """Verify the map of one target for an image [C,H,W] in the units of the model's input."""

    def own(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
        return subject.reciprocal(image, target, subject.explainer.mask, None)

    step = -(-image.shape[1] * image.shape[2] // STEPS)
    found = measure(subject, own, image, target, "poppi", step)
    random = [curves(subject, image, each, target, step) for each in random_maps(subject, image)]
    deletions, insertions = zip(*random, strict=True)
    deviations = deviations_above((found.deletion, found.insertion), random)
    return Verification(
        measured=found,
        random_deletion=deletions,
        random_insertion=insertions,
        deviations=deviations,
        verdict="no better than random" if found.flat else judge(deviations),
    )


def random_maps(subject: Subject, image: Floats) -> list[Floats]:
    """Return noise on the feature map's grid at the image's size, the same for the same image."""
    grid = subject.explainer.bundle.manifest.cut.grid
    random = np.random.default_rng(crc32(image.tobytes()))
    size = (image.shape[1], image.shape[2])
    return [upsampled(random.random(grid), size, "bilinear") for _ in range(RANDOM_MAPS)]


def deviations_above(found: tuple[float, float], random: Sequence[tuple[float, float]]) -> float:
    """Return how many standard deviations of random maps a map is above their mean.

    Args:
        found: the map's deletion and insertion; what counts is their difference.
        random: those of random maps. Where these are all the same there is no scale: 0.
    """
    margins = [insertion - deletion for deletion, insertion in random]
    spread = stdev(margins)
    return (found[1] - found[0] - fmean(margins)) / spread if spread > 0 else 0.0


def judge(deviations: float) -> Verdict:
    """Apply `RULE`'s limits."""
    if deviations > _SUPPORTED:
        return "supported"
    return "weak" if deviations > _WEAK else "no better than random"
