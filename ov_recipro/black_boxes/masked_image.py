"""An image behind masks, and the scores that a model gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ov_recipro.errors import ImageError, TargetError
from ov_recipro.metrics import Box
from ov_recipro.saliency import Array, Floats

Run: TypeAlias = Callable[[Array], Floats]
"""From inputs of the model, [b,C,H,W] or [b,H,W,C], b >= 1, to the scores of T targets, [b,T]."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called after each run with the number of inferences done, and the highest number there can be."""


@dataclass(frozen=True)
class Attribution:
    """What a black-box method found for a target.

    Attributes:
        raw: float32 [H,W], at the size of the model's input, in units of the score; its method
            says what a value means. It is not scaled, and negative values are kept.
        runs: how many inferences on masked images it rests on.
        reliability: the estimated correlation, 0..1, of this map with that of as many other masks;
            None where the method has no random masks.
    """

    raw: npt.NDArray[np.float32]
    runs: int
    reliability: float | None = None


@dataclass(frozen=True)
class MaskedImage:
    """The input of a model, and what replaces its hidden pixels.

    Attributes:
        tensor: [1,C,H,W], or [1,H,W,C] where `channels_last`.
        fill: the value of a hidden pixel, in units of the tensor: a number, or one for each
            channel [C], such as the model's padding or the mean of its training images.
        channels_last: whether the channels are the last axis.
    """

    tensor: Array
    fill: float | Floats
    channels_last: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.tensor.shape[1:3] if self.channels_last else self.tensor.shape[2:]
        return height, width

    def through(self, masks: Floats) -> Array:
        """Return the image seen through masks: x m + fill (1 - m).

        Args:
            masks: [b,H,W], 0 (hidden) to 1 (shown).

        Returns:
            [b,C,H,W] or [b,H,W,C], of the tensor's type; whole numbers are rounded.
        """
        shown = np.asarray(masks, np.float32)
        fill = np.asarray(self.fill, np.float32)
        if self.channels_last:
            shown = shown[..., None]
        else:
            shown, fill = shown[:, None], fill.reshape(-1, 1, 1)
        values = self.tensor.astype(np.float32, copy=False) * shown
        values += fill * (1 - shown)
        if np.issubdtype(self.tensor.dtype, np.integer):
            np.rint(values, out=values)
        return values.astype(self.tensor.dtype, copy=False)


def plain_scores(run: Run, image: MaskedImage) -> npt.NDArray[np.float64]:
    """Return the scores [T] of the image as it is.

    Raises:
        ImageError: one of them is not finite.
    """
    scores = np.asarray(run(image.tensor), np.float64)
    if not np.isfinite(scores).all():
        raise ImageError("The model gives NaN or infinite numbers for this image.")
    return np.asarray(scores[0])


def masked_scores(run: Run, image: MaskedImage, masks: Floats) -> npt.NDArray[np.float64]:
    """Return the scores [b,T] of the image seen through masks [b,H,W], in one run.

    Raises:
        ImageError: one of them is not finite.
    """
    scores = np.asarray(run(image.through(masks)), np.float64)
    if not np.isfinite(scores).all():
        raise ImageError("The model gives NaN or infinite numbers for a masked image.")
    return scores


def check_boxes(boxes: Sequence[Box], size: tuple[int, int]) -> None:
    """Check boxes in pixels of an input of size (H, W).

    Raises:
        TargetError: one of them is empty, not finite, or lies outside the input.
    """
    height, width = size
    for box in boxes:
        left, top, right, bottom = box
        text = ",".join(f"{edge:g}" for edge in box)
        if not (np.isfinite(box).all() and left < right and top < bottom):
            raise TargetError(f"The box {text} has no area.")
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise TargetError(f"The box {text} lies outside the model's input, {width}x{height}.")
