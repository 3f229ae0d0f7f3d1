"""Verifying an explanation: is its map better than chance at finding what the model relies on?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from zlib import crc32

import numpy as np

from ov_recipro.black_boxes.attribution import BLACK_BOXES
from ov_recipro.errors import TargetError
from ov_recipro.explanation import Explanation
from ov_recipro.faithfulness.box_measure import BoxCurves, BoxMeasurement
from ov_recipro.faithfulness.measure import curves, measure
from ov_recipro.methods import AnyTarget, Subject
from ov_recipro.methods.box_methods import BLOBS, gaussian_in, noise
from ov_recipro.metrics import Measurement, Verdict, upsampled
from ov_recipro.saliency import Floats
from ov_recipro.targets.boxes import BoxTarget
from ov_recipro.targets.classes import ClassTarget

RANDOM_MAPS = 8
STEPS = 14  # of a curve
_GRID = (8, 8)  # that of RISE's masks
_SUPPORTED, _WEAK = 2.0, 1.0

RULE = (
    f"insertion minus deletion, against {RANDOM_MAPS} random maps: supported if more than "
    f"{_SUPPORTED:g} of their standard deviations above their mean, weak if more than {_WEAK:g}; "
    "else, or if the map is flat, no better than random"
)
BOX_RULE = (
    f"insertion minus deletion of the box's own pixels, against {RANDOM_MAPS} random maps of "
    f"{BLOBS} cells along the box's longer side: "
    f"supported if more than {_SUPPORTED:g} of their standard deviations above their mean, weak if "
    f"more than {_WEAK:g}; else, or if the map is flat, no better than random; and no better than "
    "a Gaussian if one drawn into the box, which knows nothing about the model, has as much"
)


@dataclass(frozen=True)
class Verification:
    """The evidence for and against a target's map.

    Attributes:
        measured: the map, by the profile "poppi" with curves of 14 steps; a box's by
            `box_measure`.
        random_deletion, random_insertion: those of each random map (see `random_maps`).
        deviations: how far insertion minus deletion is above that of random maps; see `rule`.
        verdict: by `rule`.
        rule: in words.
    """

    measured: Measurement | BoxMeasurement
    random_deletion: tuple[float, ...]
    random_insertion: tuple[float, ...]
    deviations: float
    verdict: Verdict
    rule: str = RULE


@dataclass(frozen=True)
class BoxVerification(Verification):
    """The evidence for and against a box's map.

    Attributes:
        random_deletion, random_insertion: inside the box, of each random map.
        deviations: how far insertion minus deletion inside the box is above that of random maps.
        gaussian: a Gaussian drawn into the box, measured likewise.
    """

    rule: str = BOX_RULE
    gaussian: BoxMeasurement | None = None


def verify(subject: Subject, explanation: Explanation) -> tuple[Verification, ...]:
    """Verify an explanation's maps, target by target.

    A class takes some 270 inferences and two more explanations, a box 165 inferences.

    Args:
        subject: the explainer's model.
        explanation: of an image.

    Raises:
        ReciproError: the explanation is of a tensor, or the model gives NaN.
        TargetError: the detector does not predict a box, so there is no score to lose.
    """
    if explanation.image is None:
        raise TargetError("A tensor was explained, not an image: its map can't be verified.")
    image, _ = subject.prepare(explanation.image)
    found: list[Verification] = []
    for target, saliency in zip(explanation.scored, explanation.maps, strict=True):
        if isinstance(target, BoxTarget):
            found.append(verify_box(subject, image, target, saliency))
        else:
            given = target.index if isinstance(target, ClassTarget) else target
            found.append(verify_target(subject, image, given))
    return tuple(found)


def verify_box(
    subject: Subject, image: Floats, target: BoxTarget, saliency: Floats
) -> BoxVerification:
    """Verify the map [h,w] of a box of an image [C,H,W] in the units of the model's input.

    Raises:
        TargetError: the detector does not predict the box, or it covers no pixel.
    """
    if target.missed:
        raise TargetError("The detector does not predict this box: its map can't be verified.")
    curves_of_box = BoxCurves(subject, image, target)
    found = curves_of_box.measure(saliency)
    gaussian = curves_of_box.measure(gaussian_in(target.edges, (image.shape[1], image.shape[2])))
    random = [curves_of_box.inner(each) for each in reference_maps(image, target)]
    deletions, insertions = zip(*random, strict=True)
    deviations = deviations_above((found.inner_deletion, found.inner_insertion), random)
    return BoxVerification(
        measured=found,
        random_deletion=deletions,
        random_insertion=insertions,
        deviations=deviations,
        verdict=judge_box(found, gaussian, deviations),
        gaussian=gaussian,
    )


def verify_target(subject: Subject, image: Floats, target: AnyTarget) -> Verification:
    """Verify the map of one target for an image [C,H,W] in the units of the model's input."""

    def own(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
        return subject.own(image, target)

    step = -(-image.shape[1] * image.shape[2] // STEPS)
    found = measure(subject, own, image, target, "poppi", step, has_saco=False)
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


def reference_maps(image: Floats, target: BoxTarget) -> list[Floats]:
    """Return noise for a box of an image [C,H,W] (see `box_methods.noise`).

    The method "random" is not among it, so that this can be judged like any other.
    """
    return list(noise(image, target, 1 + RANDOM_MAPS)[1:])


def random_maps(subject: Subject, image: Floats) -> list[Floats]:
    """Return noise on the feature map's grid at the image's size, the same for the same image.

    Beside a black box's map, which knows no such grid, it has 8x8 cells.
    """
    explainer = subject.explainer
    is_black_box = explainer.method in BLACK_BOXES
    grid = _GRID if is_black_box else explainer.bundle.manifest.cut.grid
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


def judge_box(found: BoxMeasurement, gaussian: BoxMeasurement, deviations: float) -> Verdict:
    """Apply `BOX_RULE` to a box's map, a Gaussian in the box, and the former's deviations."""
    verdict = "no better than random" if found.flat else judge(deviations)
    if verdict != "no better than random" and found.inner_margin <= gaussian.inner_margin:
        return "no better than a Gaussian"
    return verdict
