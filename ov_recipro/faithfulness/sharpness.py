"""How sharp a map may be drawn: as sharp as what it shows still suffices for the score.

For the eye alone. A measure that looks at the image through the map, such as ADCC, is easily raised
in this way, of a map that knows nothing too (see `methods.sanity.fit_gaussian`).
"""

from __future__ import annotations

import numpy as np

from ov_recipro.explanation import Explanation
from ov_recipro.methods import Subject
from ov_recipro.metrics import upsampled
from ov_recipro.saliency import Floats

_POWERS = (2.0, 1.3, 0.8)  # from the sharpest
_ENOUGH = 0.9  # of the score


def sharpness(subject: Subject, explanation: Explanation) -> list[float]:
    """Return for each target the power that its map is to be drawn at.

    It is the greatest of 2, 1.3 and 0.8 for which the image times the map keeps 90 % of the
    target's score; the least where none does. It takes up to four inferences a target.

    Args:
        subject: the model that was explained.
        explanation: of an image.
    """
    if explanation.image is None:
        raise ValueError("only the explanation of an image can be drawn")
    image, _ = subject.prepare(explanation.image)
    found = []
    for target, saliency in zip(explanation.scored, explanation.maps, strict=True):
        score = subject.score(image, target)
        found.append(
            next(
                (
                    power
                    for power in _POWERS
                    if subject.score(_seen(image, saliency**power), target) >= _ENOUGH * score
                ),
                _POWERS[-1],
            )
        )
    return found


def _seen(image: Floats, saliency: Floats) -> Floats:
    """Return an image [C,H,W] seen through a map [h,w]."""
    size = (image.shape[1], image.shape[2])
    return np.asarray(image * upsampled(saliency, size, "bilinear"), np.float32)
