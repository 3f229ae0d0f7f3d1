"""The Aumann-Shapley share of each cell, for tails of global average pool and linear layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ov_recipro.saliency import Floats, Score, class_scores

POINTS = 16
"""Of the midpoint rule along the path from nothing to the whole feature map."""


def aumann(
    logits: Floats, empty: Floats, classes: list[int], score: Score
) -> npt.NDArray[np.float64]:
    """Return each cell's share of some classes' scores, [N,T].

    All cells grow together from nothing to what they are; a cell's share is what its own growth
    adds to the score on the way (Aumann & Shapley, "Values of Non-Atomic Games", 1974). The shares
    sum up to the score less that of no cell, but for what 16 points on the way leave out.

    Args:
        logits: of each cell alone, [N,classes]; they add up, as behind such a tail.
        empty: of no cell, [classes].
        classes: which.
        score: how logits become scores.
    """
    alone = np.asarray(logits, np.float64) - empty
    total = alone.sum(axis=0)
    times = (np.arange(POINTS) + 0.5) / POINTS
    scores = class_scores(empty + times[:, None] * total, score)  # [points,classes]
    own = alone[:, classes]
    if score == "none":
        return np.asarray(own)
    if score == "sigmoid":
        of_path = scores[:, classes]
        return np.asarray(own * (of_path * (1 - of_path)).mean(axis=0))
    # mean over the points i of q_ic (V_nc - q_i . V_n)
    chosen = scores[:, classes]
    return np.asarray(own * chosen.mean(axis=0) - alone @ (scores.T @ chosen) / POINTS)
