"""Comparing two explainers on an image: two models, or two layers of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ov_recipro.errors import OptionError, TargetError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation, Prediction
from ov_recipro.images.drawing import DEFAULT, Style
from ov_recipro.images.preprocess import Image
from ov_recipro.images.reading import ImageFile, read_file
from ov_recipro.metrics import correlation
from ov_recipro.saliency import Floats

_SIDE = 256  # pixels of an image's longer side, where maps of different grids meet


@dataclass(frozen=True)
class Comparison:
    """What two explainers report on an image.

    Attributes:
        image: its name.
        first, second: their predictions; changed: whether these name different classes.
        target: the class whose maps are compared, with the first's score; second_score: the
            other's.
        correlation: Pearson's, of the two maps; None where one of them is flat.
    """

    image: str
    first: Prediction
    second: Prediction
    changed: bool
    target: Prediction
    second_score: float
    correlation: float | None


def compare(
    first: Explainer,
    second: Explainer,
    image: str | Path | ImageFile | Image,
    target: str | int = "top1",
) -> tuple[Comparison, Explanation, Explanation]:
    """Explain one class of an image twice.

    Args:
        first, second: explainers of models of the same classes.
        image: see `ov_recipro.Explainer`.
        target: the class; "top1" is the first's.

    Returns:
        The comparison, and both explanations.

    Raises:
        OptionError: the models have different numbers of classes.
        ImageError: the image can't be read, or a model gives NaN for it.
        TargetError: there is no such class.
    """
    counts = [each.bundle.manifest.classes for each in (first, second)]
    if counts[0] != counts[1]:
        raise OptionError(
            f"The models have {counts[0]} and {counts[1]} classes; they must have the same."
        )
    source = read_file(Path(image)) if isinstance(image, str | Path) else image
    one = first(source, target)
    explained = one.targets[0]
    other = second(source, explained.index)
    found = Comparison(
        image=one.path or "",
        first=one.predictions[0],
        second=other.predictions[0],
        changed=one.predictions[0].index != other.predictions[0].index,
        target=Prediction(explained.index, explained.label, explained.score),
        second_score=other.targets[0].score,
        correlation=_correlation(one, other),
    )
    return found, one, other


def _correlation(one: Explanation, other: Explanation) -> float | None:
    """Return the correlation of both first maps, over what both models saw."""
    if one.targets[0].flat or other.targets[0].flat:
        return None
    if one.window == other.window and one.maps.shape == other.maps.shape:
        return correlation(one.maps[0], other.maps[0])
    maps = [_on_image(each) for each in (one, other)]
    both = np.isfinite(maps[0]) & np.isfinite(maps[1])
    return correlation(maps[0][both], maps[1][both]) if both.any() else None


def _on_image(explanation: Explanation) -> Floats:
    """Return the first map over the whole image, scaled down; NaN where the model saw nothing."""
    if explanation.image is None or explanation.window is None:
        raise TargetError("A tensor was explained, not an image: its map can't be compared.")
    height, width = explanation.image.shape[:2]
    factor = _SIDE / max(height, width)
    rows, columns = explanation.maps.shape[1:]
    left, top, right, bottom = explanation.window
    y, x = np.mgrid[: max(1, round(height * factor)), : max(1, round(width * factor))] + 0.5
    v = (y / factor - top) / (bottom - top)
    u = (x / factor - left) / (right - left)
    values = cv2.remap(
        explanation.maps[0],
        np.asarray(u * columns - 0.5, np.float32),
        np.asarray(v * rows - 0.5, np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    seen = (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    return np.where(seen, values, np.nan)


def side_by_side(one: Explanation, other: Explanation, style: Style = DEFAULT) -> Image:
    """Return both overlays, the first on the left, uint8 [H,2W,3] BGR."""
    return np.hstack([one.overlay(style=style), other.overlay(style=style)])
