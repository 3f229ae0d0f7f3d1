"""Two looks at one image: what a cell achieves alone, and what is lost without it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ov_recipro.metrics import upsampled
from ov_recipro.saliency import Floats

_Maps = npt.NDArray[np.float64]


def pair(kept: _Maps, empty: _Maps, dropped: _Maps, whole: _Maps) -> _Maps:
    """Return the sums of both looks, [T,H,W], each of them 0 to 1; a look that says nothing is 0.

    A cell that is kept alone counts as the square root of how far its score exceeds that of the
    empty map: by itself, a softmax makes a dot of it. Both are enlarged to the finer of two grids.

    Args:
        kept: scores of each cell alone, [T,h,w], at the earlier of two feature maps.
        empty: scores of none of these cells, [T].
        dropped: scores of all cells but each, [T,h',w'], at the later feature map.
        whole: scores of all cells, [T].
    """
    gained = np.sqrt(_scaled(kept - empty[:, None, None]))
    lost = _scaled(whole[:, None, None] - dropped)
    height, width = (max(each) for each in zip(kept.shape[1:], dropped.shape[1:], strict=True))
    return _enlarged(gained, (height, width)) + _enlarged(lost, (height, width))


def _scaled(values: _Maps) -> _Maps:
    """Return each map's values above 0 by their maximum."""
    above = np.maximum(values, 0)
    highest = above.max(axis=(1, 2), keepdims=True)
    return np.asarray(above / np.where(highest > 0, highest, 1))


def _enlarged(maps: Floats, size: tuple[int, int]) -> _Maps:
    if maps.shape[1:] == size:
        return np.asarray(maps, np.float64)
    return np.stack([upsampled(each, size, "bilinear") for each in maps]).astype(np.float64)
