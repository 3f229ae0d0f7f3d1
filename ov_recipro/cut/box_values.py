"""What only values tell of how a detector's outputs hold its boxes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ov_recipro.cut.box_layout import Background, BoxLayout
from ov_recipro.saliency import Floats

_ROUNDING = 0.01  # of a sum of probabilities, also in float16
_LARGEST_LOGARITHM = 16.0  # of a box's side in cells
_LARGEST_SHARE = 4.0  # a median coordinate beyond it is not a share of the image


def is_decoded(values: Floats, layout: BoxLayout) -> bool:
    """Whether the boxes of YOLOX are decoded, judging by the values [V] of any image.

    Decoded widths and heights are pixels, none below 0; their logarithms are small, many below 0.
    """
    if layout.form != "yolox":
        return layout.decoded
    sizes = values.ravel()[layout.places("boxes", np.arange(layout.anchors), np.arange(2, 4))]
    return bool(np.nanmin(sizes) >= 0 and np.nanmax(sizes) > _LARGEST_LOGARITHM)


def proven_layout(layout: BoxLayout, values: Floats) -> BoxLayout:
    """Return a layout with what shapes leave open decided by the values of any image.

    That is whether YOLOX's boxes are decoded, whether decoded boxes are in pixels, whether scores
    are logits, and whether one class stands for no object: of probabilities that sum to 1, the
    first or the last, if it leads in most candidates.

    Args:
        layout: from shapes; values: of one image, [V] or [1,V].
    """
    if layout.suppressed or layout.family == "fastestdet":
        return layout
    if is_decoded(values, layout) and not layout.decoded:
        layout = replace(layout, form="cxcywh")
    row, anchors = values.ravel(), np.arange(layout.anchors)
    first, end = layout.channels("scores")
    width = end - first
    scores = row[layout.places("scores", anchors, np.arange(width))]
    if layout.family == "detr":
        return _with_none(layout) if _leads(scores, -1) and np.median(scores[:, -1]) > 0 else layout
    if layout.decoded:
        boxes = row[layout.places("boxes", anchors, np.arange(4))]
        in_pixels = np.median(np.abs(boxes).max(axis=1)) > _LARGEST_SHARE
        layout = replace(layout, unit="pixels" if in_pixels else "image")
    if scores.min() < 0 or scores.max() > 1:
        has_none = layout.background != "none"
        return replace(layout, activation="softmax" if has_none else "sigmoid")
    if layout.family != "ssd" or width < 2:
        return layout
    if np.abs(scores.sum(axis=1) - 1).max() > _ROUNDING:
        return replace(layout, classes=width, background="none") if width == 2 else layout
    background: Background = "last" if _leads(scores, -1) else "first"
    return replace(layout, classes=width - 1, background=background)


def _with_none(layout: BoxLayout) -> BoxLayout:
    """Return a DETR's layout whose last class stands for no object."""
    if layout.background == "last":
        return layout
    classes = layout.classes - 1
    return replace(layout, classes=classes, activation="softmax", background="last")


def _leads(scores: Floats, index: int) -> bool:
    """Whether one class has the highest score in most candidates, of at least two classes."""
    best = scores.argmax(axis=1) == index % scores.shape[1]
    return scores.shape[1] > 1 and bool(best.mean() > 0.5)
