"""Votes: where the candidates are that agree with a box, at no cost beyond the plain inference."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.errors import OptionError
from ov_recipro.saliency import Floats
from ov_recipro.targets.base import ScoredTarget
from ov_recipro.targets.boxes import BoxTarget
from ov_recipro.targets.candidates import decode, iou


def votes(targets: Sequence[ScoredTarget], outputs: Floats) -> npt.NDArray[np.float64]:
    """Return maps of IoU(b_a, b) * p_a, each candidate a painted at its own cell.

    They show where the model decides on a box, not what it sees there: nothing is masked.

    Args:
        targets: boxes.
        outputs: of the image, in a row [V].

    Returns:
        Maps [T,h,w] at the size of the finest level; those of coarser levels are enlarged, and the
        largest value counts.

    Raises:
        OptionError: the targets are not boxes, or the model's candidates have no cells.
    """
    found = []
    for target in targets:
        if not isinstance(target, BoxTarget) or not target.layout.grids:
            raise OptionError("Method 'votes' needs a detector whose candidates have cells.")
        found.append(_map(target, outputs))
    return np.stack(found)


def _map(target: BoxTarget, outputs: Floats) -> npt.NDArray[np.float64]:
    layout = target.layout
    candidates = decode(outputs[None], layout, None, np.array([target.index]))
    score = iou(candidates.boxes[0], target.edges) * candidates.scores[0, :, 0]
    height, width = max((rows, columns) for _, rows, columns in layout.grids)
    total, start = np.zeros((height, width)), 0
    for _, rows, columns in layout.grids:
        end = start + rows * columns * layout.priors
        level = score[start:end].reshape(layout.priors, rows, columns).max(axis=0)
        large = cv2.resize(level, (width, height), interpolation=cv2.INTER_NEAREST)
        total, start = np.maximum(total, large), end
    return total
