"""From class scores per cell to saliency maps (Eq. 6 and 7 of the Recipro-CAM paper)."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Score = Literal["softmax", "sigmoid", "none"]
"""How logits become the scores y_c: Eq. 7's softmax, sigmoid for multi-label, or unchanged."""

Activation = Literal["softmax", "log_softmax", "sigmoid", "none"]
"""What a model itself applies to its logits at its end."""

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]


def class_scores(logits: Floats, score: Score) -> npt.NDArray[np.float64]:
    """Turn logits [..., classes] into class scores of the same shape.

    In double precision: the scores of neighbouring cells differ little (Eq. 7's y_c spans 0.001 to
    0.002 for a tabby on EfficientNet-Lite0).
    """
    values = np.asarray(logits, np.float64)
    if score == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if score == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))
    return values


def target_scores(
    logits: Floats, score: Score, targets: list[int], terms: Floats | None = None
) -> npt.NDArray[np.float64]:
    """Return the scores [N,T] of some classes alone, as `class_scores` gives them.

    Args:
        logits: [N,classes].
        score: how they become scores.
        targets: the classes wanted.
        terms: the logits' `softmax_terms`, where known.
    """
    chosen = np.asarray(logits[:, targets], np.float64)
    if score != "softmax":
        return class_scores(chosen, score)
    terms = softmax_terms(logits) if terms is None else terms
    highest, others, ties = terms[:, :1], terms[:, 1:2], terms[:, 2:]
    return np.asarray(np.exp(chosen - highest) / (ties + others.astype(np.float64)))


def softmax_terms(logits: Floats) -> npt.NDArray[np.float32]:
    """Return what a softmax over logits [N,classes] divides by, in three terms, [N,3].

    These are the highest logit, the sum of exp(logit - highest) over those below it, and the
    number of those equal to it. Apart, float32 holds them as precisely as the logits: close to
    a score of 1, what the others add to the 1 may be far below 1e-7.
    """
    values = np.asarray(logits, np.float32)
    highest = values.max(axis=1, keepdims=True)
    powers = values - highest
    below = powers < 0
    np.exp(powers, out=powers)
    others = powers.sum(axis=1, keepdims=True, where=below)
    ties = values.shape[1] - below.sum(axis=1, keepdims=True, dtype=np.float32)
    return np.concatenate([highest, others, ties], axis=1, dtype=np.float32)


def best_classes(scores: Floats, count: int) -> list[int]:
    """Return the `count` classes of highest score, best first; equal ones in their order."""
    if count == 1:
        return [int(scores.argmax())]
    count = min(count, len(scores))
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= threshold).tolist()
    return sorted(candidates, key=lambda index: -float(scores[index]))[:count]


def close_scores(logits: Floats, activation: Activation) -> npt.NDArray[np.float64]:
    """Apply the activation that closes a model to its logits [..., classes]."""
    if activation == "log_softmax":
        return np.log(class_scores(logits, "softmax"))
    return class_scores(logits, activation)


def default_score(activation: Activation, classes: int) -> Score:
    """Return a model's default score: its own closing activation, else Eq. 7's softmax.

    A single class has no other to compete with; its softmax would be 1 everywhere.
    """
    return "sigmoid" if activation == "sigmoid" or classes == 1 else "softmax"


def saliency_maps(raw: Floats, from_zero: bool = False) -> npt.NDArray[np.float32]:
    """Scale each class's scores to [0,1] over its cells (Eq. 6).

    Args:
        raw: y_c, [T,H,W].
        from_zero: 0 stands for 0, and for all that is below, instead of the lowest score.

    Returns:
        float32 [T,H,W]; all zeros where a class's scores are the same at every cell.
    """
    values = np.asarray(raw, np.float64)
    low = values.min(axis=(1, 2), keepdims=True)
    if from_zero:
        values, low = np.maximum(values, 0), np.zeros_like(low)
    span = values.max(axis=(1, 2), keepdims=True) - low
    return np.asarray((values - low) / np.where(span > 0, span, 1), np.float32)


def begins_at_zero(method: str, mask: str) -> bool:
    """Whether a method's maps begin at 0, as they hold what a loss costs or a share, not scores."""
    return mask == "drop" or method not in ("recipro", "recipro-pair")


def maps_of(raw: Floats, method: str, mask: str) -> npt.NDArray[np.float32]:
    """Scale what a method gives each cell, [T,H,W], to [0,1] (see `saliency_maps`)."""
    return saliency_maps(raw, begins_at_zero(method, mask))


def score_of_cells(method: str, score: Score) -> Score:
    """Return how logits became the values of a method's cells; a variant's are no scores."""
    return "none" if method in ("recipro-pair", "recipro-aumann") else score


def signed_maps(raw: Floats, zeros: Floats) -> npt.NDArray[np.float32]:
    """Scale the deviations of scores from each target's zero to [-1,1].

    Args:
        raw: scores per cell [T,H,W]; zeros: [T].

    Returns:
        float32 [T,H,W]; all zeros where no cell deviates.
    """
    values = np.asarray(raw, np.float64) - np.asarray(zeros, np.float64)[:, None, None]
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    return np.asarray(values / np.where(largest > 0, largest, 1), np.float32)
