"""Verifying an explanation: is its map better than chance at finding what the model goes by?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np

from ov_recipro.errors import ReciproError
from ov_recipro.explanation import Explanation
from ov_recipro.faithfulness import curves, measure
from ov_recipro.methods import Subject
from ov_recipro.metrics import upsampled
from ov_recipro.preprocess import prepare
from ov_recipro.saliency import Floats

Verdict = Literal["supported", "weak", "no better than random"]

RANDOM_MAPS = 5
_POINTS = 14  # steps of a curve

RULE = (
    f"supported: insertion above and deletion below those of all {RANDOM_MAPS} random maps; weak: "
    "one of the two; else, or if the map is flat: no better than random"
)


@dataclass(frozen=True)
class Verification:
    """What speaks for a target's map and against it; fractions, as in `metrics`, "poppi".

    Attributes:
        drop, increase, coherency, complexity: see `metrics.Measurement`.
        deletion, insertion: areas below curves of 14 steps.
        random_deletion, random_insertion: those of random maps on the same grid, each.
        verdict: by `rule`.
        rule: in words.
    """

    drop: float
    increase: bool
    coherency: float | None
    complexity: float
    deletion: float
    insertion: float
    random_deletion: tuple[float, ...]
    random_insertion: tuple[float, ...]
    verdict: Verdict
    rule: str = RULE


def verify(subject: Subject, explanation: Explanation) -> tuple[Verification, ...]:
    """Verify an explanation's maps, target by target.

    Args:
        subject: the explainer's model.
        explanation: of an image.

    Raises:
        ReciproError: it is of a tensor, or the model gives NaN.
    """
    if explanation.image is None:
        raise ReciproError("A tensor was explained, not an image: it can't be verified.")
    explainer = subject.explainer
    entry = explainer.bundle.manifest.image
    tensor, _ = prepare(
        explanation.image, explainer.preprocessing, entry.channels_last, entry.dtype
    )
    image = subject.image(tensor)
    return tuple(verify_class(subject, image, target.index) for target in explanation.targets)


def verify_class(subject: Subject, image: Floats, index: int) -> Verification:
    """Verify the map of one class for an image [C,H,W] in the units of the model's input."""

    def own(subject: Subject, image: Floats, index: int) -> Floats:
        return subject.reciprocal(image, index, subject.explainer.mask, None)

    step = -(-image.shape[1] * image.shape[2] // _POINTS)
    found = measure(subject, own, image, index, "poppi", step)
    random = [curves(subject, image, large, index, step) for large in random_maps(subject, image)]
    deletions, insertions = zip(*random, strict=True)
    return Verification(
        drop=found.drop,
        increase=found.increase,
        coherency=found.coherency,
        complexity=found.complexity,
        deletion=found.deletion,
        insertion=found.insertion,
        random_deletion=deletions,
        random_insertion=insertions,
        verdict=judge(found.deletion, found.insertion, deletions, insertions, found.flat),
    )


def random_maps(subject: Subject, image: Floats) -> list[Floats]:
    """Return noise on the feature map's grid at the image's size, the same for the same image."""
    grid = subject.explainer.bundle.manifest.cut.grid
    random = np.random.default_rng(crc32(image.tobytes()))
    size = (image.shape[1], image.shape[2])
    return [upsampled(random.random(grid), size, "bilinear") for _ in range(RANDOM_MAPS)]


def judge(
    deletion: float,
    insertion: float,
    random_deletion: tuple[float, ...],
    random_insertion: tuple[float, ...],
    flat: bool,
) -> Verdict:
    """Apply `RULE`."""
    better = (insertion > max(random_insertion)) + (deletion < min(random_deletion))
    if flat or not better:
        return "no better than random"
    return "supported" if better == 2 else "weak"
