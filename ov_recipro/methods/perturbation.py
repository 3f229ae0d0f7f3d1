"""Methods that show the model the image through many masks."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from ov_recipro.methods.subject import AnyTarget, Subject, class_of
from ov_recipro.metrics import upsampled
from ov_recipro.saliency import Floats, class_scores

RISE_MASKS = 1000
_GRID = 8
_KEPT = 0.5


def score_cam(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """Score-CAM (Wang et al., 2020): channels by the logit of the image seen through them.

    A channel, upsampled and scaled to 0..1, masks the image; the softmax over all channels of the
    class's logits weighs them. A constant channel masks nothing and adds nothing.
    """
    features = subject.forward(image).features
    low, high = features.min(axis=(1, 2)), features.max(axis=(1, 2))
    informative_channels = np.flatnonzero(high > low)
    if not len(informative_channels):
        return np.zeros(features.shape[1:])

    def masked() -> Iterator[Floats]:
        for k in informative_channels:
            mask = upsampled(features[k], (image.shape[1], image.shape[2]), "bilinear")
            yield image * (mask - mask.min()) / (mask.max() - mask.min())

    logits = subject.logits_of_all(masked())[:, class_of(target)]
    weights = class_scores(logits, "softmax")
    total = np.tensordot(weights, features[informative_channels].astype(np.float64), 1)
    return np.asarray(np.maximum(total, 0))


def rise(subject: Subject, image: Floats, target: AnyTarget) -> Floats:
    """RISE (Petsiuk et al., 2018): 1000 random masks, weighted by the class's score behind each.

    Masks are 8x8 grids, each cell kept with p = 0.5, enlarged and shifted at random; they are
    the same for every image.
    """
    total = np.zeros(image.shape[1:])
    scores = subject.curve((image * mask for mask in _random_masks(image.shape)), target)
    for score, mask in zip(scores, _random_masks(image.shape), strict=True):
        total += score * mask
    return total / (RISE_MASKS * _KEPT)


def _random_masks(shape: tuple[int, ...]) -> Iterator[Floats]:
    height, width = shape[1:]
    tall, wide = -(-height // _GRID), -(-width // _GRID)
    size = ((_GRID + 1) * wide, (_GRID + 1) * tall)
    random = np.random.default_rng(0)
    for _ in range(RISE_MASKS):
        grid = (random.random((_GRID, _GRID)) < _KEPT).astype(np.float32)
        top, left = int(random.integers(tall)), int(random.integers(wide))
        enlarged = cv2.resize(grid, size, interpolation=cv2.INTER_LINEAR)
        yield np.asarray(enlarged[top : top + height, left : left + width])
