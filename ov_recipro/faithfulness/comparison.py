"""Comparing two explainers on an image: two models, or two layers of one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ov_recipro.cut.recognition import with_article
from ov_recipro.errors import OptionError, TargetError
from ov_recipro.explainer import Explainer
from ov_recipro.explanation import Explanation, Prediction
from ov_recipro.images.drawing import DEFAULT, Style
from ov_recipro.images.preprocess import Image
from ov_recipro.images.reading import ImageFile, read_file
from ov_recipro.metrics import correlation
from ov_recipro.options import Targets
from ov_recipro.saliency import Floats
from ov_recipro.sources.labels import class_index
from ov_recipro.targets.boxes import Box, DetectedBox
from ov_recipro.targets.candidates import iou

_SIDE = 256  # pixels of an image's longer side, where maps of different grids meet


@dataclass(frozen=True)
class Comparison:
    """What two explainers report on an image.

    Attributes:
        image: its name.
        first, second: their predictions; changed: whether these name different classes. Of
            detectors, the first's box and the second's in its place, None where it predicts none.
        target: the class or box whose maps are compared, with the first's score; second_score: the
            other's.
        correlation: Pearson's, of the two maps; None where one of them is flat, or the second
            misses the box.
    """

    image: str
    first: Prediction
    second: Prediction | None
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
    """Explain one class of an image twice; of detectors, the first's best box of the class.

    Args:
        first, second: explainers of models of the same classes, both classifiers or detectors.
        image: see `ov_recipro.Explainer`.
        target: the class; "top1" is the first's, or of detectors the class of its best box.

    Returns:
        The comparison, and both explanations.

    Raises:
        OptionError: the models have different numbers of classes, or do something else.
        ImageError: the image can't be read, or a model gives NaN for it.
        TargetError: there is no such class, or no box.
    """
    check_comparable(first, second)
    source = read_file(Path(image)) if isinstance(image, str | Path) else image
    if first.bundle.manifest.task == "detector":
        return _compare_boxes(first, second, source, target)
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


def check_comparable(first: Explainer, second: Explainer) -> None:
    """Raise where the maps of two models can't be compared.

    Raises:
        OptionError: they can't.
    """
    for name, each in (("first", first), ("second", second)):
        manifest = each.bundle.manifest
        if manifest.task not in ("classifier", "detector"):
            raise OptionError(
                f"compare takes classifiers and detectors; the {name} model is "
                f"{with_article(manifest.task)} ({manifest.why})."
            )
    tasks = [each.bundle.manifest.task for each in (first, second)]
    if tasks[0] != tasks[1]:
        raise OptionError(
            f"The first model is {with_article(tasks[0])}, the second {with_article(tasks[1])}; "
            "they must be of one kind."
        )
    counts = [each.bundle.manifest.classes for each in (first, second)]
    if counts[0] != counts[1]:
        raise OptionError(
            f"The models have {counts[0]} and {counts[1]} classes; they must have the same classes."
        )


def _compare_boxes(
    first: Explainer, second: Explainer, source: ImageFile | Image, target: str | int
) -> tuple[Comparison, Explanation, Explanation]:
    one = _best_box(first, source, target)
    (ours, *_) = one.targets
    if not isinstance(ours, Box):
        raise TypeError("a detector's targets are boxes")
    other = second(source, Targets((ours.index,), box=ours.box))
    theirs = _in_place_of(ours, other)
    box = DetectedBox(ours.index, ours.label, ours.score, ours.box)
    found = Comparison(
        image=one.path or "",
        first=box,
        second=theirs,
        changed=theirs is None,
        target=box,
        second_score=other.targets[0].score,
        correlation=None if theirs is None else _correlation(one, other),
    )
    return found, one, other


def _best_box(explainer: Explainer, source: ImageFile | Image, target: str | int) -> Explanation:
    """Explain a detector's best box, or that of a class, and no other."""
    best = Targets(box=1)
    if target == "top1":
        return explainer(source, best)
    asked = Targets((target,))
    explainer.find_targets(asked)  # a class that it does not know is an error, whatever it sees
    one = explainer(source, best)
    known = explainer.bundle.manifest.classes or 1 + max(each.index for each in one.predictions)
    index = class_index(target, explainer.labels, known)
    numbers = [n for n, each in enumerate(one.predictions, 1) if each.index == index]
    if numbers[:1] == [1]:
        return one
    number = numbers[0] if numbers else None  # without one, the error says so
    return explainer(source, dataclasses.replace(asked, box=number))


def _in_place_of(box: Box, other: Explanation) -> DetectedBox | None:
    """Return what another detector predicts in a box's place; None where it misses the box."""
    (drawn,) = other.targets
    if not isinstance(drawn, Box) or drawn.missed:
        return None
    same = [p for p in other.predictions if isinstance(p, DetectedBox) and p.index == box.index]
    return max(same, key=lambda each: float(iou(_edges(each.box), _edges(box.box))))


def _edges(box: tuple[float, float, float, float]) -> Floats:
    left, top, width, height = box
    return np.array([left, top, left + width, top + height], np.float32)


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
