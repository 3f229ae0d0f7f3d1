"""How faithful saliency maps are: the metrics of the field, in numpy.

Average drop and increase: Chattopadhyay et al., "Grad-CAM++", 2018. Coherency, complexity and ADCC:
Poppi et al., "Revisiting the evaluation of class activation mapping for explainability", 2021.
Deletion and insertion: Petsiuk et al., "RISE", 2018. Pointing game: Zhang et al., "Top-down neural
attention by excitation backprop", 2016; its energy form: Wang et al., "Score-CAM", 2020. Grid
pointing game: Böhle et al., "Convolutional dynamic alignment networks", 2021. All values are
fractions; tables show them times 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.saliency import Floats

Box: TypeAlias = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""

Interpolation = Literal["bilinear", "bicubic"]

Verdict = Literal["supported", "weak", "no better than a Gaussian", "no better than random"]
"""Of a map's verification (see `faithfulness.verification`)."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""From the best to the worst."""

INTERVAL = "95 %, percentiles of 2000 bootstrap samples of the images"
FEWEST_IMAGES = 5
"""An interval is shown from this number of images on: that of one image has a width of 0."""

_KINDS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_BLUR_SIDE, _BLUR_SIGMA = 11, 5.0
_RESAMPLES = 2000
_DEFOCUS = 20  # of these an image's longer side has; one is the blur's sigma


def upsampled(saliency: Floats, size: tuple[int, int], kind: Interpolation) -> Floats:
    """Return a map [h,w] at a larger size (H,W), float32, with half-pixel centres, not rescaled.

    "bicubic" overshoots the map's range.
    """
    height, width = size
    values = np.asarray(saliency, np.float32)
    return np.asarray(cv2.resize(values, (width, height), interpolation=_KINDS[kind]))


def drop(score: float, explained: float) -> float:
    """Return the part of a class's score lost when the model sees only the explanation, 0..1.

    Args:
        score: the class's score y on the image.
        explained: its score o on the image times the map.
    """
    return max(0.0, score - explained) / score if score > 0 else 0.0


def correlation(one: Floats, other: Floats) -> float | None:
    """Return Pearson's correlation of two maps' pixels; None where one of them is flat."""
    a = np.asarray(one, np.float64).ravel()
    b = np.asarray(other, np.float64).ravel()
    a, b = a - a.mean(), b - b.mean()
    # sums, not products of vectors: BLAS's rounding depends on its threads
    norm = math.sqrt(float((a * a).sum())) * math.sqrt(float((b * b).sum()))
    return min(1.0, max(-1.0, float((a * b).sum()) / norm)) if norm > 0 else None


def rank_correlation(one: Floats, other: Floats) -> float | None:
    """Return Spearman's correlation of two maps' pixels; None where one of them is flat."""
    return correlation(_ranks(one), _ranks(other))


def _ranks(values: Floats) -> Floats:
    """Return each value's rank; equal ones share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse.reshape(-1)])


def coherency(of_image: Floats, of_explanation: Floats) -> float | None:
    """Return how similar the map of an image and the map of its explanation are, 0..1.

    None where one of them is flat, which counts as 0.
    """
    r = correlation(of_image, of_explanation)
    return None if r is None else (r + 1) / 2


def complexity(saliency: Floats) -> float:
    """Return how much of the image a map covers: its mean absolute value."""
    return float(np.abs(np.asarray(saliency, np.float64)).mean())


def adcc(average_drop: float, mean_coherency: float, mean_complexity: float) -> float:
    """Return the harmonic mean of coherency, 1 - complexity and 1 - drop, of a dataset's means."""
    terms = (mean_coherency, 1 - mean_complexity, 1 - average_drop)
    return 3 / sum(1 / term for term in terms) if min(terms) > 0 else 0.0


def by_saliency(saliency: Floats) -> npt.NDArray[np.intp]:
    """Return a map's pixels by decreasing saliency; equal ones in raster order."""
    return np.argsort(-np.asarray(saliency).ravel(), kind="stable")


def by_saliency_inside(saliency: Floats, box: Box) -> npt.NDArray[np.intp]:
    """Return a box's pixels alone, numbered in the map [H,W], in the order of `by_saliency`.

    A pixel is the box's where its centre lies in it.
    """
    order = by_saliency(saliency)
    return order[inside(np.shape(saliency), box).ravel()[order]]


def inside(size: tuple[int, ...], box: Box) -> npt.NDArray[np.bool_]:
    """Return which pixels of an image of `size` (H, W) have their centres in a box, [H,W]."""
    left, top, right, bottom = box
    y, x = np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None] + 0.5
    return np.asarray((x >= left) & (x < right) & (y >= top) & (y < bottom))


def replaced(
    start: Floats, end: Floats, order: npt.NDArray[np.intp], step: int
) -> Iterator[Floats]:
    """Yield an image [C,H,W] as its pixels turn, `step` at a time, from `start` to `end`.

    All channels of a pixel turn at once. There are ceil(H*W / step) + 1 images, both ends included;
    each is the same array, valid until the next is asked for. Deletion is from x to 0, insertion
    from `blurred(x)` to x.
    """
    now = np.array(start)
    pixels, target = now.reshape(len(now), -1), end.reshape(len(end), -1)
    yield now
    for first in range(0, len(order), step):
        chosen = order[first : first + step]
        pixels[:, chosen] = target[:, chosen]
        yield now


def blurred(image: Floats) -> Floats:
    """Blur an image [C,H,W] as RISE does where insertion starts: 11x11, nearly a box."""
    planes = [
        cv2.filter2D(np.ascontiguousarray(plane), -1, _kernel(), borderType=cv2.BORDER_CONSTANT)
        for plane in np.asarray(image, np.float32)
    ]
    return np.stack(planes)


def defocused(image: Floats) -> Floats:
    """Blur an image [C,H,W] until no object can be made out: sigma 1/20 of its longer side.

    Of a detector's image, RISE's blur hides nothing but the smallest boxes.
    """
    sigma = max(image.shape[1:]) / _DEFOCUS
    planes = [
        cv2.GaussianBlur(np.ascontiguousarray(plane), (0, 0), sigma)
        for plane in np.asarray(image, np.float32)
    ]
    return np.stack(planes)


@cache
def _kernel() -> Floats:
    """Return an impulse of 11x11 smoothed with sigma 5, its border mirrored."""
    offsets = np.arange(-round(4 * _BLUR_SIGMA), round(4 * _BLUR_SIGMA) + 1)
    weights = np.exp(-0.5 * (offsets / _BLUR_SIGMA) ** 2)
    row = np.zeros(_BLUR_SIDE)
    for place in range(_BLUR_SIDE):
        mirrored = (place + offsets) % (2 * _BLUR_SIDE)
        mirrored = np.minimum(mirrored, 2 * _BLUR_SIDE - 1 - mirrored)
        row[place] = weights[mirrored == _BLUR_SIDE // 2].sum()
    row /= weights.sum()
    return np.asarray(np.outer(row, row), np.float32)


def replaced_by_cell(start: Floats, end: Floats, saliency: Floats) -> Iterator[Floats]:
    """Yield an image [C,H,W] as the boxes of a map's cells turn from `start` to `end`.

    As Recipro-CAM's authors do it: a cell of the native map [h,w] is a box of H//h by W//w pixels
    plus one more row and column. There are h*w + 1 images, `start` included.
    """
    now = np.array(start)
    yield now
    (rows, columns), (height, width) = saliency.shape, start.shape[1:]
    tall, wide = height // rows, width // columns
    for cell in by_saliency(saliency):
        row, column = divmod(int(cell), columns)
        box = np.s_[
            :,
            row * tall : (row + 1) * tall + 1,
            column * wide : (column + 1) * wide + 1,
        ]
        now[box] = end[box]
        yield now


def area(scores: Sequence[float], intervals: int) -> float:
    """Return the area below a curve by trapezoids, of a width of 1/`intervals` each."""
    return (math.fsum(scores) - (scores[0] + scores[-1]) / 2) / intervals


def points_inside(saliency: Floats, boxes: Sequence[Box]) -> bool:
    """Whether the pixel of greatest saliency [H,W] lies in one of the boxes (the pointing game)."""
    y, x = divmod(int(np.argmax(saliency)), saliency.shape[1])
    return any(
        left <= x + 0.5 < right and top <= y + 0.5 < bottom for left, top, right, bottom in boxes
    )


def energy_inside(saliency: Floats, boxes: Sequence[Box]) -> float:
    """Return the part of a map's sum [H,W] that lies in the boxes, 0..1; 0 for a map of zeros."""
    values = np.maximum(np.asarray(saliency, np.float64), 0)
    chosen = np.zeros(values.shape, bool)
    for box in boxes:
        chosen |= inside(values.shape, box)
    total = values.sum()
    return float(values[chosen].sum() / total) if total > 0 else 0.0


def saco(saliency: Sequence[float], drops: Sequence[float]) -> float:
    """Return how faithful the order and the sizes of a map's values are, -1..1.

    The Salience-guided Faithfulness Coefficient of Wu et al., "On the Faithfulness of Vision
    Transformer Explanations", 2024, Algorithm 1: the image's pixels, sorted by saliency, are
    divided into groups of about one size, each of which is hidden by itself. For each two, the
    difference of their saliency counts for the map where the more salient one costs the score no
    less, else against it. A map that is the same everywhere gets 0.

    Args:
        saliency: the groups' means of saliency, in descending order; drops: what the score loses
            without each.
    """
    total = gained = 0.0
    for i, j in combinations(range(len(saliency)), 2):
        weight = saliency[i] - saliency[j]
        gained += weight if drops[i] >= drops[j] else -weight
        total += abs(weight)
    return gained / total if total > 0 else 0.0


def auc_inside(saliency: Floats, box: Box) -> float:
    """Return the chance that a pixel in a box ranks above one outside, 0..1; equal ones half."""
    values = np.asarray(saliency)
    within = inside(values.shape, box).ravel()
    ranks = _ranks(values)[within]
    count, others = len(ranks), values.size - len(ranks)
    return float((ranks.sum() - count * (count + 1) / 2) / (count * others))


@dataclass(frozen=True)
class Measurement:
    """One map, measured.

    Attributes:
        score: of the class on the image, y; explained: on the image times the map, o.
        drop, increase: see `drop`; whether o > y.
        coherency: None where it is undefined.
        complexity: see `complexity`.
        deletion, insertion: areas below the curves.
        flat: the map says nothing: all its cells are the same.
        pointing, energy: see `points_inside` and `energy_inside`; None without boxes.
        saco: see `saco`.
        grid_energy, grid_auc, grid_peak: the grid pointing game; None where it was not played: of
            the map of a mosaic of four images, `energy_inside` the image's own quarter,
            `auc_inside` it and `points_inside` it.
    """

    score: float
    explained: float
    drop: float
    increase: bool
    coherency: float | None
    complexity: float
    deletion: float
    insertion: float
    flat: bool
    pointing: bool | None = None
    energy: float | None = None
    saco: float | None = None
    grid_energy: float | None = None
    grid_auc: float | None = None
    grid_peak: bool | None = None


@dataclass(frozen=True)
class Mean:
    """A mean over images, and the ends of its bootstrap 95% interval."""

    value: float
    low: float
    high: float


def resampled_means(values: Floats, counts: Floats | None = None) -> Floats:
    """Return the means [kinds,resamples] of bootstrap samples of images, the same in each call.

    Args:
        values: of each kind and image [kinds,images]; where an image has several, their sum.
        counts: number of values of each image [images], by default 1. Images are drawn, not
            values, since values of one image depend on each other.
    """
    count = values.shape[1]
    generator = np.random.default_rng(0)
    drawn = [generator.multinomial(count, np.full(count, 1 / count)) for _ in range(_RESAMPLES)]
    return np.stack(
        [values @ each / (count if counts is None else counts @ each) for each in drawn], axis=1
    )


def interval(resampled: Floats) -> tuple[float, float]:
    """Return the ends of the 95% interval of a bootstrap's means."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)
