"""From a detector's outputs to candidate boxes with scores, and to the boxes that remain of them.

The families' formulas are those of their authors: YOLOX (Ge et al. 2021), FastestDet
(dog-qiuqiu/FastestDet), NanoDet's distributions (Li et al. 2020, Generalized Focal Loss, Eq. 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.cut.box_layout import BoxLayout, Content, Indices
from ov_recipro.saliency import Floats

Float32: TypeAlias = npt.NDArray[np.float32]
BoxEdges: TypeAlias = tuple[float, float, float, float]

_LARGEST = 30.0  # of a logarithm of a size; a larger one is infinite in float32
FASTESTDET_POWERS = (0.6, 0.4)
"""Of objectness and class score in FastestDet's score."""


@dataclass(frozen=True)
class Candidates:
    """What a model proposes.

    Attributes:
        boxes: float32 [N,A,4] of N runs: left, top, right, bottom in pixels of the model's input.
        scores: float32 [N,A,K], 0..1.
    """

    boxes: Float32
    scores: Float32


@dataclass(frozen=True)
class Detection:
    """A box that remains: its candidate, class, score 0..1 and edges in the input's pixels."""

    anchor: int
    class_index: int
    score: float
    box: BoxEdges


def columns(
    layout: BoxLayout, anchors: Indices | None = None, classes: Indices | None = None
) -> Indices:
    """Return which values of the row some candidates are computed from, ascending, each once.

    Args:
        layout: with a fixed number of candidates.
        anchors: the candidates, None for all; classes: whose scores are wanted, None for all.
    """
    chosen = _all(layout.anchors) if anchors is None else anchors
    read = [
        layout.places(content, chosen, _channels(layout, content, classes)).ravel()
        for content in layout.contents()
    ]
    return np.unique(np.concatenate(read))


def decode(
    values: Floats,
    layout: BoxLayout,
    anchors: Indices | None = None,
    classes: Indices | None = None,
    reads: Indices | None = None,
) -> Candidates:
    """Return candidates of N runs.

    Args:
        values: of the runs, [N,V] in a row as `BoxLayout` says, or only those that it `reads`.
            Where the number of boxes is open, V is as many as they have.
        layout: how they hold candidates.
        anchors: the candidates wanted, in this order, None for all.
        classes: the classes whose scores are wanted, in this order, None for all.
        reads: `columns(layout, anchors, classes)`, where there are only these values.

    Returns:
        Candidates with A = number of anchors and K = number of classes. Boxes whose labels are of
        unknown number get as many classes as the largest label needs.

    Raises:
        ValueError: the runs have another number of values.
    """
    if reads is None:
        layout = layout.of_size(values.shape[1])
    expected = layout.values if reads is None else len(reads)
    if values.shape[1] != expected:
        raise ValueError(f"{values.shape[1]} values a run, not {expected}")
    chosen = _all(layout.anchors) if anchors is None else anchors

    def read(content: Content) -> Float32:
        table = layout.places(content, chosen, _channels(layout, content, classes))
        places = table if reads is None else np.searchsorted(reads, table)
        return values[:, places].astype(np.float32, copy=False)

    boxes = _edges(read("boxes"), layout, chosen)
    scores = read("scores")
    contents = layout.contents()
    if layout.suppressed:
        if "image" in contents:
            scores = scores * (read("image") >= 0)
        if "count" in contents:
            scores = scores * (chosen[:, None] < read("count"))
        return Candidates(boxes, _by_label(scores, read("labels"), layout.classes, classes))
    scores = _activated(scores, layout, classes)
    if "objectness" in contents:
        scores = _joined(read("objectness"), scores, layout)
    return Candidates(boxes, scores)


def iou(boxes: Floats, box: Floats | BoxEdges) -> Float32:
    """Return the intersection over union of boxes [...,4] with one box [4], [...], 0..1."""
    one = np.asarray(box, np.float32)
    low, high = np.maximum(boxes[..., :2], one[:2]), np.minimum(boxes[..., 2:], one[2:])
    common = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1)
    union = areas + np.prod(np.clip(one[2:] - one[:2], 0, None)) - common
    return np.asarray(common / np.maximum(union, 1e-9), np.float32)


_MOST = 300  # boxes that remain, as most detectors limit them
_TRIED = 1000  # candidates that are tried first: enough of them remain, as a rule


def detections(
    candidates: Candidates, threshold: float = 0.4, overlap: float | None = 0.5
) -> list[Detection]:
    """Return the boxes of one run that remain, best first, 300 at most.

    Args:
        candidates: of one run; each counts for its best class.
        threshold: the lowest score that remains.
        overlap: the largest IoU with a better box of its class that remains; None where boxes were
            already suppressed.
    """
    boxes, scores = candidates.boxes[0], candidates.scores[0]
    if not scores.size:
        return []
    index, best = scores.argmax(axis=1), scores.max(axis=1)
    order = np.argsort(-best, kind="stable")
    order = order[best[order] >= threshold]
    if overlap is not None:
        order = order[_unsuppressed(boxes[order], best[order], index[order], overlap)]
    return [
        Detection(anchor, int(index[anchor]), float(best[anchor]), tuple(boxes[anchor].tolist()))
        for anchor in order[:_MOST].tolist()
    ]


def _unsuppressed(boxes: Float32, scores: Float32, classes: Indices, overlap: float) -> Indices:
    """Return which of some boxes, best first, no better one of their class overlaps by more.

    Only better boxes decide about a box, so the first ones are tried alone until enough remain.
    """
    count = _TRIED
    while True:
        found = [np.zeros(0, np.int64)]
        for index in np.unique(classes[:count]):
            own = np.flatnonzero(classes[:count] == index)
            found.append(own[_apart(boxes[own], scores[own], overlap)])
        remaining = np.sort(np.concatenate(found))
        if len(remaining) >= _MOST or count >= len(classes):
            return remaining
        count *= 4


def _apart(boxes: Float32, scores: Float32, overlap: float) -> Indices:
    """Return which boxes of one class remain; boxes without an area neither go nor suppress."""
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    solid = np.isfinite(sides).all(axis=1) & (sides[:, 2:] > 0).all(axis=1)
    own = np.flatnonzero(solid)
    kept = cv2.dnn.NMSBoxes(sides[own].tolist(), scores[own].tolist(), 0.0, overlap)
    return np.concatenate([np.flatnonzero(~solid), own[np.asarray(kept, np.int64)]])


def _all(count: int) -> Indices:
    return np.arange(count, dtype=np.int64)


def _channels(layout: BoxLayout, content: Content, classes: Indices | None) -> Indices:
    """Return which numbers of a candidate are read, counted within the part."""
    first, end = layout.channels(content)
    if content != "scores" or classes is None or layout.suppressed:
        return _all(end - first)
    if layout.activation == "softmax":
        return _all(end - first)
    return classes + (layout.background == "first")


def _edges(numbers: Float32, layout: BoxLayout, anchors: Indices) -> Float32:
    """Return left, top, right and bottom [N,A,4] in pixels."""
    height, width = layout.image
    sides = np.array([width, height], np.float32)
    if layout.form in ("xyxy", "yxyx"):
        if layout.form == "yxyx":
            numbers = numbers[..., [1, 0, 3, 2]]
        if layout.family == "suppression":  # any two opposite corners
            first, second = numbers[..., :2], numbers[..., 2:]
            ends = [np.minimum(first, second), np.maximum(first, second)]
            numbers = np.concatenate(ends, axis=-1)
        return numbers * np.tile(sides, 2) if layout.unit == "image" else numbers
    if layout.form == "cxcywh":
        scale = sides if layout.unit == "image" else np.float32(1)
        return _around(numbers[..., :2] * scale, numbers[..., 2:] * scale)
    strides, down, across = (each.astype(np.float32) for each in layout.cells(anchors))
    stride = strides[:, None]
    cells = np.stack([across, down], axis=-1)
    if layout.form == "yolox":
        centres = (numbers[..., :2] + cells) * stride
        return _around(centres, np.exp(np.minimum(numbers[..., 2:], _LARGEST)) * stride)
    if layout.form == "fastestdet":
        centres = (np.tanh(numbers[..., :2]) + cells) * stride
        return _around(centres, _sigmoid(numbers[..., 2:]) * sides)
    return _from_distances(numbers, (cells + layout.middle) * stride, stride)


def _from_distances(numbers: Float32, centres: Float32, stride: Float32) -> Float32:
    """Return edges: the means of the distributions over distances from centres [A,2]."""
    sides = _softmax(numbers.reshape(*numbers.shape[:2], 4, -1))
    distances = (sides @ np.arange(sides.shape[-1], dtype=np.float32)) * stride
    ends = [centres - distances[..., :2], centres + distances[..., 2:]]
    return np.concatenate(ends, axis=-1)


def _around(centres: Float32, sizes: Float32) -> Float32:
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)


def _activated(scores: Float32, layout: BoxLayout, classes: Indices | None) -> Float32:
    """Return scores of the classes wanted; a background's are left out."""
    if layout.activation == "sigmoid":
        scores = _sigmoid(scores)
    if layout.activation == "softmax":
        scores = _softmax(scores)
        wanted = _all(layout.classes) if classes is None else classes
        return scores[..., wanted + (layout.background == "first")]
    if classes is None and layout.background != "none":
        return scores[..., 1:] if layout.background == "first" else scores[..., :-1]
    return scores


def _joined(objectness: Float32, scores: Float32, layout: BoxLayout) -> Float32:
    if layout.family == "fastestdet":
        of_object, of_class = FASTESTDET_POWERS
        return np.asarray(objectness**of_object * scores**of_class)
    return objectness * scores


def _by_label(scores: Float32, labels: Float32, count: int, classes: Indices | None) -> Float32:
    """Return scores [N,A,K] that are 0 but for each box's own class."""
    if classes is None:
        classes = _all(count or int(labels.max(initial=-1)) + 1)
    return np.asarray(np.where(labels == classes, scores, 0), np.float32)


def _sigmoid(logits: Float32) -> Float32:
    return np.asarray(1 / (1 + np.exp(-np.maximum(logits, -80))), np.float32)


def _softmax(logits: Float32) -> Float32:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
