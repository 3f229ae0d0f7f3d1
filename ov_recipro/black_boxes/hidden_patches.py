"""Occlusion: what the score loses while a patch of the image is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

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
from ov_recipro.metrics import Box

_Patch: TypeAlias = tuple[slice, slice]

_BOX_STEPS = 8  # of a side; a patch is two steps wide
_BOX_POSITIONS = 11
_IMAGE_STEPS = 16


def occlusion(
    run: Run,
    image: MaskedImage,
    boxes: Sequence[Box] | None = None,
    *,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Attribution]:
    """Hide patches one after another (Zeiler & Fergus, 2014), fitted to each target's box.

    A box's patches have a quarter of its sides and move by an eighth: 11x11 positions over the box
    and a quarter of it on each side, 121 inferences for each target. Patches outside the input are
    not run. Without boxes, patches have an eighth of the image's sides and move by a
    sixteenth: 15x15 positions, 225 inferences, shared by all targets. The plain image takes one
    more inference.

    Args:
        run: the model.
        image: the input to explain.
        boxes: the targets' boxes, in the order of their scores, in pixels of the model's input.
        batch: how many images a run has.
        progress: see `Progress`.

    Returns:
        An attribution for each target. Its raw value at a pixel is the score lost, p* - y, averaged
        over the patches that cover the pixel (negative where the score rises); 0 where none does.

    Raises:
        ImageError: a score is not finite.
        TargetError: a box is empty or lies outside the input.
    """
    plain = plain_scores(run, image)
    if boxes is None:
        all_targets = np.arange(len(plain))
        tasks = [(_patches(_over_image(image.size), image.size), all_targets)]
    else:
        check_boxes(boxes, image.size)
        tasks = [
            (_patches(_around(box), image.size), np.array([target]))
            for target, box in zip(range(len(plain)), boxes, strict=True)
        ]
    done, total = 0, sum(len(patches) for patches, _ in tasks)
    found = []
    for patches, targets in tasks:
        lost = np.zeros((len(targets), *image.size))
        covering = np.zeros(image.size)
        for start in range(0, len(patches), batch):
            chosen = patches[start : start + batch]
            scores = masked_scores(run, image, _masks(chosen, image.size))[:, targets]
            for (rows, columns), each in zip(chosen, plain[targets] - scores, strict=True):
                lost[:, rows, columns] += each[:, None, None]
                covering[rows, columns] += 1
            done += len(chosen)
            if progress is not None:
                progress(done, total)
        lost /= np.maximum(covering, 1)
        found += [Attribution(raw.astype(np.float32), len(patches)) for raw in lost]
    return found


def _around(box: Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the edges of a box's patches: of rows and of columns, [11,2] each."""
    left, top, right, bottom = box
    return _spans(top, bottom - top), _spans(left, right - left)


def _spans(start: float, side: float) -> npt.NDArray[np.float64]:
    step = side / _BOX_STEPS
    begin = start + step * (np.arange(_BOX_POSITIONS) - 2)
    return np.stack([begin, begin + 2 * step], axis=1)


def _over_image(
    size: tuple[int, int],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the edges of the patches over an image: of rows and of columns, [15,2] each."""
    begin = np.arange(_IMAGE_STEPS - 1) / _IMAGE_STEPS
    spans = np.stack([begin, begin + 2 / _IMAGE_STEPS], axis=1)
    return spans * size[0], spans * size[1]


def _patches(
    edges: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], size: tuple[int, int]
) -> list[_Patch]:
    """Return every patch, row by row, in whole pixels, without those outside the image."""
    rows, columns = (_slices(each, side) for each, side in zip(edges, size, strict=True))
    return [(down, across) for down in rows for across in columns]


def _slices(spans: npt.NDArray[np.float64], side: int) -> list[slice]:
    """Return spans [n,2] rounded to pixels, at least one wide, clipped to 0..side."""
    begin = np.floor(spans[:, 0] + 0.5).astype(int)
    end = np.maximum(np.floor(spans[:, 1] + 0.5).astype(int), begin + 1)
    clipped = zip(begin.clip(0, side).tolist(), end.clip(0, side).tolist(), strict=True)
    return [slice(first, last) for first, last in clipped if first < last]


def _masks(patches: Sequence[_Patch], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return a mask for each patch, [b,H,W]: 0 in it, 1 elsewhere."""
    masks = np.ones((len(patches), *size), np.float32)
    for mask, (rows, columns) in zip(masks, patches, strict=True):
        mask[rows, columns] = 0
    return masks
