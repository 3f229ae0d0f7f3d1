"""Regions: why these pixels were called what they were called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ov_recipro.errors import TargetError
from ov_recipro.explanation import Target
from ov_recipro.images.preprocess import Window
from ov_recipro.metrics import Box
from ov_recipro.saliency import Floats, Score, class_scores
from ov_recipro.targets.base import extended

_CHUNK = 1 << 22  # numbers of a softmax computed at once


@dataclass(frozen=True)
class Region(Target):
    """The record of a region; `score` is the mean score of its class over its pixels.

    Attributes:
        region: left, top, right and bottom in pixels of the image; None for all pixels that are
            predicted as the class.
        pixels: how many pixels of the model's output it has.
        context: the share of the map, 0..1, that lies outside it; None for a map of zeros.
    """

    region: tuple[float, float, float, float] | None = None
    pixels: int = 0
    context: float | None = None

    @property
    def identity(self) -> Any:
        """What tells it from other targets."""
        return [self.index, self.region]

    def remarks(self, cells: int, score: Score, mask: str = "cell") -> list[str]:
        """Return, in words, what speaks against the map, and how much of it is context."""
        found = super().remarks(cells, score, mask)
        if self.context is not None:
            found.append(f"{100 * self.context:.0f} % of the map lies outside the region.")
        return found


@dataclass(frozen=True)
class RegionTarget:
    """The mean score of a class over some pixels.

    Attributes:
        index: the class; label: its name, where names are known.
        score: how its logits become scores.
        mask: bool [h,w], the pixels; region: what the user named, see `Region`.
        shape: of the model's scores [1,K,h,w] or [1,h,w,K]; class_axis: which of these K is.
    """

    index: int
    label: str | None
    score: Score
    mask: npt.NDArray[np.bool_]
    region: Box | None
    shape: tuple[int, ...]
    class_axis: int

    reads = None

    def scores(self, outputs: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:  # noqa: ARG002
        """Return the mean score over the pixels in each run, [N]."""
        pixels = by_pixel(outputs, self.shape, self.class_axis)[:, self.mask]
        step = max(1, _CHUNK // max(1, pixels[0].size))
        found = [
            class_scores(pixels[start : start + step], self.score)[..., self.index].mean(axis=1)
            for start in range(0, len(pixels), step)
        ]
        return np.concatenate(found)

    def described(self, measured: Target, saliency: Floats, raw: Floats) -> Target:  # noqa: ARG002
        """Return the record, with the share of the map that is context."""
        height, width = saliency.shape
        covered = cv2.resize(
            self.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
        )
        total = float(saliency.sum())
        inside = float((saliency * covered).sum())
        context = None if total == 0 else 1 - inside / total
        return extended(
            Region, measured, region=self.region, pixels=int(self.mask.sum()), context=context
        )


def by_pixel(outputs: Floats, shape: tuple[int, ...], class_axis: int) -> Floats:
    """Return outputs [N,values] as scores [N,h,w,K]."""
    maps = outputs.reshape(-1, *shape[1:])
    return np.moveaxis(maps, class_axis, -1)


def best_by_pixel(scores: Floats) -> npt.NDArray[np.int64]:
    """Return the class [h,w] that each pixel is predicted as, of logits [h,w,K].

    One class of its own is predicted where its sigmoid is above a half; elsewhere the result is -1.
    """
    if scores.shape[-1] > 1:
        return np.asarray(scores.argmax(axis=-1))
    return np.where(scores[..., 0] > 0, 0, -1)


def area_of(region: Box, window: Window | None, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels [h,w] of the model's output inside a region of the image.

    Args:
        region: left, top, right and bottom in pixels of the image.
        window: the part of the image that the model saw.
        shape: (h, w).

    Raises:
        TargetError: the region lies outside what the model saw.
    """
    left, top, right, bottom = window if window is not None else (0, 0, shape[1], shape[0])
    height, width = shape
    x = (np.arange(width) + 0.5) / width * (right - left) + left
    y = (np.arange(height) + 0.5) / height * (bottom - top) + top
    columns, rows = (x >= region[0]) & (x < region[2]), (y >= region[1]) & (y < region[3])
    outside = region[2] <= left or region[0] >= right or region[3] <= top or region[1] >= bottom
    if outside:
        raise TargetError(
            f"The region {_text(region)} lies outside the part of the image that the model saw, "
            f"{_text((left, top, right, bottom))}."
        )
    for inside, places, ends in ((columns, x, region[::2]), (rows, y, region[1::2])):
        if not inside.any():  # narrower than a pixel of the output
            inside[np.abs(places - sum(ends) / 2).argmin()] = True
    return np.asarray(rows[:, None] & columns[None])


def _text(box: Box) -> str:
    return ",".join(f"{edge:g}" for edge in box)
