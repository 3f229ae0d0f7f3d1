"""AISE: windows that move to where they keep the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_recipro.black_boxes.masked_image import (
    Attribution,
    MaskedImage,
    Progress,
    Run,
    check_boxes,
    masked_scores,
    plain_scores,
)
from ov_recipro.errors import OptionError
from ov_recipro.metrics import Box
from ov_recipro.saliency import Floats

_DIVISORS = (7, 4, 1)  # of a box's shorter side: the windows' sigma
_EPSILON = 0.05  # DIRECT's: how much better than the best a promising part must be


def aise(
    run: Run,
    image: MaskedImage,
    boxes: Sequence[Box] | None = None,
    *,
    windows: int = 50,
    progress: Progress | None = None,
) -> list[Attribution]:
    """AISE, written from the description of OpenVINO XAI 1.1's AISEDetection.

    The image is shown through a Gaussian window, whose sigma is a seventh, a quarter and the whole
    of the box's shorter side. For each of these, DIRECT (Jones et al., 1993) moves it over the box
    and half a box round it to where it keeps most of the score. Every window tried is added to the
    map with the score that it keeps. Where a window goes depends on the scores before it, so each
    run has one image.

    By construction, little of the map lies outside the box. Scores should not be negative.

    Args:
        run: the model.
        image: the input to explain.
        boxes: the targets' boxes, in the order of their scores, in pixels of the model's input;
            without them, each target's box is the whole image.
        windows: how many of each width are tried at most.
        progress: see `Progress`.

    Returns:
        An attribution for each target. For each width, the windows times their scores are summed
        and scaled to a maximum of 1; the raw map is the sum over widths, scaled so that its maximum
        is the highest score that a window kept. It is all zeros where no window kept any.

    Raises:
        ImageError: a score is not finite.
        TargetError: a box is empty or lies outside the input.
        OptionError: SciPy is not installed.
    """
    optimize = _optimize()
    count = len(plain_scores(run, image))
    if boxes is None:
        height, width = image.size
        boxes = [(0.0, 0.0, float(width), float(height))] * count
    check_boxes(boxes, image.size)
    done, total = 0, count * len(_DIVISORS) * windows
    found = []
    for target, box in zip(range(count), boxes, strict=True):

        def kept(window: Floats, target: int = target) -> float:
            nonlocal done
            score = float(masked_scores(run, image, window[None])[0, target])
            done += 1
            if progress is not None:
                progress(done, total)
            return score

        searches = [
            _search(optimize, _Windows(kept, image.size, sigma, windows), _bounds(box, image.size))
            for sigma in _sigmas(box)
        ]
        found.append(_combined(searches))
    return found


@dataclass
class _Windows:
    """The windows of one width that a search has tried.

    Attributes:
        kept: runs the model on the image seen through a window [H,W].
        size: height and width of the input.
        sigma: in pixels.
        limit: how many windows are tried.
        weighted: the sum of the windows times their scores, [H,W].
        highest: the highest score, if above 0.
        tried: how many.
    """

    kept: Callable[[Floats], float]
    size: tuple[int, int]
    sigma: float
    limit: int
    weighted: Floats = field(init=False)
    highest: float = 0.0
    tried: int = 0

    def __post_init__(self) -> None:
        self.weighted = np.zeros(self.size)

    def loss(self, centre: Floats) -> float:
        """Try the window at a centre (x, y) in pixels; return its score's negative."""
        if self.tried == self.limit:
            return 0.0  # DIRECT ends a round that it has begun
        across, down = (
            np.exp(-0.5 * ((np.arange(side) + 0.5 - place) / self.sigma) ** 2)
            for side, place in zip(self.size[::-1], centre, strict=True)
        )
        window = np.outer(down, across)
        score = self.kept(window)
        self.weighted += score * window
        self.highest = max(self.highest, score)
        self.tried += 1
        return -score


def _search(optimize: Any, windows: _Windows, bounds: npt.NDArray[np.float64]) -> _Windows:
    """Return the windows that DIRECT tries.

    Args:
        optimize: SciPy's module.
        windows: none of them tried yet.
        bounds: of their centres, lowest and highest (x, y), [2,2].
    """
    try:
        optimize.direct(
            windows.loss,
            optimize.Bounds(*bounds),
            eps=_EPSILON,
            maxfun=windows.limit,
            locally_biased=False,
        )
    except SystemError as error:  # SciPy before 1.17.1 wraps what `loss` raises
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None
    return windows


def _combined(searches: Sequence[_Windows]) -> Attribution:
    """Return the sum of the searches' maps, each scaled to a maximum of 1."""
    raw = np.zeros(searches[0].size)
    for each in searches:
        peak = each.weighted.max()
        if peak > 0:
            raw += each.weighted / peak
    if raw.max() > 0:
        raw *= max(each.highest for each in searches) / raw.max()
    return Attribution(raw.astype(np.float32), sum(each.tried for each in searches))


def _bounds(box: Box, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return the lowest and the highest (x, y) of windows' centres, [2,2]."""
    left, top, right, bottom = box
    across, down = (right - left) / 2, (bottom - top) / 2
    reach = np.array([[left - across, top - down], [right + across, bottom + down]])
    return reach.clip(0, size[::-1])


def _sigmas(box: Box) -> list[float]:
    left, top, right, bottom = box
    return [min(right - left, bottom - top) / divisor for divisor in _DIVISORS]


def _optimize() -> Any:
    """Import SciPy's optimisers, an optional dependency."""
    try:
        from scipy import optimize
    except ImportError as error:
        raise OptionError(
            f"Method 'aise' needs SciPy ({error}): pip install 'ov-recipro[aise]'."
        ) from error
    return optimize
