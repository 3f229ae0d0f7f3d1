"""RISE and D-RISE: how the score varies with random masks."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.black_boxes.masked_image import (
    Attribution,
    MaskedImage,
    Progress,
    Run,
    masked_scores,
)
from ov_recipro.metrics import correlation
from ov_recipro.saliency import Floats

_SHOWN = 0.5
_RELIABLE = 0.9
_ROUND = 96  # masks between two looks at the reliability


def rise(
    run: Run,
    image: MaskedImage,
    *,
    masks: int = 4000,
    seed: int = 0,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Attribution]:
    """RISE (Petsiuk et al., 2018) for scores of the whole image, on a 7x7 grid as in the paper.

    Masks are random grids, each cell shown with p = 0.5, enlarged bilinearly and shifted at random;
    one stream of them serves all targets. Two things differ from the paper:

    The estimator is the covariance of mask and score, not the sum of masks weighted by the score.
    Divided by their number, that sum is the covariance plus the mean score times the mean mask: a
    floor under the whole map. The floor says nothing about places, and as no finite number of masks
    covers all pixels equally, it adds noise in proportion to the mean score.

    The number of masks is not fixed. The maps of the even and of the odd masks, averaged over cells
    of the grid, have the correlation r; the map of all masks has the reliability 2 r / (1 + r)
    (Spearman and Brown, 1910). The stream ends where that is 0.9 for every target, or at `masks`.

    Args:
        run: the model.
        image: the input to explain.
        masks: how many are run at most; 2 or more. By default as many as the paper has for VGG16.
        seed: of the random masks.
        batch: how many images a run has; it does not change when the stream ends.
        progress: see `Progress`.

    Returns:
        An attribution for each target. Its raw value at a pixel is the covariance divided by the
        masks' variance (one number, the mean over all pixels). It is about how much higher the
        score is, on average, when the pixel and its surroundings, a cell wide, are shown than when
        they are hidden. A score that no mask changes has the reliability 0.

    Raises:
        ImageError: a score is not finite.
    """
    stream = _Stream(7, image.size, masks, seed)
    return _explained(run, image, stream, batch, progress)


def d_rise(
    run: Run,
    image: MaskedImage,
    *,
    masks: int = 5000,
    seed: int = 0,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Attribution]:
    """D-RISE (Petsiuk et al., 2021) for scores of boxes: `rise` on a 16x16 grid.

    A run's score for a box is the caller's: the largest product of the overlap with the box and the
    score of its class, over all boxes that the run finds. Grid and number of masks are the paper's.
    Arguments, result and errors are those of `rise`.
    """
    stream = _Stream(16, image.size, masks, seed)
    return _explained(run, image, stream, batch, progress)


class _Stream:
    """Random masks, any of which can be made again.

    A grid is two cells larger than the image in both directions: an enlarged grid only repeats its
    outermost cells along its border, and masks would vary more there than elsewhere.
    """

    def __init__(self, grid: int, size: tuple[int, int], count: int, seed: int) -> None:
        self.grid, self.size, self.count = grid, size, count
        self._cell = -(-size[0] // grid), -(-size[1] // grid)
        for_cells, for_shifts = np.random.default_rng(seed).spawn(2)
        self._cells = for_cells.random((count, grid + 2, grid + 2), np.float32) < _SHOWN
        self._shifts = for_shifts.integers(0, self._cell, (count, 2))

    def masks(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return the masks from `start` to `stop`, [n,H,W], 0..1."""
        (height, width), (tall, wide) = self.size, self._cell
        large = (wide * (self.grid + 2), tall * (self.grid + 2))
        made = np.empty((stop - start, height, width), np.float32)
        for mask, cells, shift in zip(
            made, self._cells[start:stop], self._shifts[start:stop], strict=True
        ):
            enlarged = cv2.resize(cells.astype(np.float32), large, interpolation=cv2.INTER_LINEAR)
            top, left = int(shift[0]) + tall // 2, int(shift[1]) + wide // 2
            mask[:] = enlarged[top : top + height, left : left + width]
        return made


def _explained(
    run: Run, image: MaskedImage, stream: _Stream, batch: int, progress: Progress | None
) -> list[Attribution]:
    """Run the masks until every target's map is reliable; return the maps."""
    side = (stream.grid, stream.grid)
    coarse = np.empty((stream.count, stream.grid**2), np.float32)
    scores: list[Floats] = []
    done = 0
    reliabilities: Floats = np.zeros(0)
    while done < stream.count:
        stop = min(done + batch, done - done % _ROUND + _ROUND, stream.count)
        masks = stream.masks(done, stop)
        scores.append(masked_scores(run, image, masks))
        for row, mask in zip(coarse[done:stop], masks, strict=True):
            row[:] = cv2.resize(mask, side, interpolation=cv2.INTER_AREA).ravel()
        done = stop
        if progress is not None:
            progress(done, stream.count)
        if done % _ROUND == 0 or done == stream.count:
            reliabilities = _reliabilities(coarse[:done], np.concatenate(scores))
            if (reliabilities >= _RELIABLE).all():
                break
    raw = _slopes(stream, np.concatenate(scores), batch)
    return [
        Attribution(each, done, float(reliability))
        for each, reliability in zip(raw, reliabilities, strict=True)
    ]


def _slopes(stream: _Stream, scores: Floats, batch: int) -> npt.NDArray[np.float32]:
    """Return the covariance of masks and scores [n,T], in masks' variances, [T,H,W].

    The masks are made a second time: centred scores give the covariance without the difference of
    two large sums, and only T maps are held.
    """
    height, width = stream.size
    count, targets = scores.shape
    centred = scores - scores.mean(axis=0)
    products = np.zeros((targets, height * width))
    total, squares = np.zeros(height * width), 0.0
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        masks = stream.masks(start, stop).reshape(stop - start, -1).astype(np.float64)
        products += centred[start:stop].T @ masks
        total += masks.sum(axis=0)
        squares += float((masks * masks).sum())
    variance = squares / (count * total.size) - float(((total / count) ** 2).mean())
    slopes = products / (count * variance) if variance > 0 else products
    return slopes.reshape(targets, height, width).astype(np.float32)


def _reliabilities(coarse: Floats, scores: Floats) -> Floats:
    """Return the reliability of each target's map, [T], by its maps of even and of odd masks.

    Args:
        coarse: the masks averaged over the cells of the grid, [n,cells].
        scores: [n,T].
    """
    halves = [
        (scores[first::2] - scores[first::2].mean(axis=0)).T @ coarse[first::2].astype(np.float64)
        for first in (0, 1)
    ]
    agreement = np.array([correlation(even, odd) or 0.0 for even, odd in zip(*halves, strict=True)])
    agreement = np.maximum(agreement, 0)
    return np.asarray(2 * agreement / (1 + agreement))
