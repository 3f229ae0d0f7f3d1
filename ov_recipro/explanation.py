"""An explanation: what the model said of an image, and a saliency map for each explained class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov_recipro import draw
from ov_recipro.errors import ReciproError
from ov_recipro.labels import find_class
from ov_recipro.preprocess import Image, Window
from ov_recipro.saliency import Score

_FEW = 0.5  # share of different scores below which a map is coarse
_CLOSE = 0.02  # spread of the scores, as a share of the highest, below which the signal is weak


@dataclass(frozen=True)
class Prediction:
    """A class that the model gives for the whole image.

    Attributes:
        index: the class; label: its name, where names are known.
        score: the class's score, such as its softmax probability.
    """

    index: int
    label: str | None
    score: float


@dataclass(frozen=True)
class Target(Prediction):
    """An explained class.

    Attributes:
        range: least and greatest raw score y_c over the cells, before min-max scaling.
        distinct_values: number of different raw scores; few of many cells mean a map of noise.
        flat: all cells score the same, so the map is all zeros and says nothing.
    """

    range: tuple[float, float]
    distinct_values: int
    flat: bool

    def remarks(self, cells: int, score: Score) -> list[str]:
        """Return, in words, what speaks against the class's map.

        Args:
            cells: number of cells.
            score: how logits became scores.
        """
        if self.flat:
            return ["All cells score the same: this map says nothing."]
        found = []
        if self.distinct_values < _FEW * cells:
            found.append(
                f"Only {self.distinct_values} different scores among {cells} cells: the map is "
                "coarse, perhaps rounding alone."
            )
        low, high = self.range
        if score != "none" and high - low < _CLOSE * high:
            found.append(
                f"Weak signal: the cells' scores differ by {100 * (high - low) / high:.2g} % at "
                "most; scaling to the full range makes that look like much."
            )
        return found


@dataclass(frozen=True)
class Explanation:
    """Why a model scored some classes as it did.

    Attributes:
        predictions: the five classes of highest score, best first.
        targets: the explained classes, in the order they were asked for.
        maps: saliency maps, float32 [T,H,W], 0..1 (Eq. 6 of the paper).
        raw: class scores y_c per cell before scaling, float32 [T,H,W].
        feature_shape: (C, H, W) of the feature map that was masked.
        image: the explained image, uint8 [h,w,3] BGR; None for a tensor.
        window: the part of the image that the model saw, in pixels.
        milliseconds: time for inference and maps.
    """

    predictions: tuple[Prediction, ...]
    targets: tuple[Target, ...]
    maps: npt.NDArray[np.float32]
    raw: npt.NDArray[np.float32]
    feature_shape: tuple[int, int, int]
    image: Image | None
    window: Window | None
    milliseconds: float

    def overlay(self, target: str | int | None = None, style: draw.Style = draw.DEFAULT) -> Image:
        """Draw a target's map onto the image.

        Args:
            target: class name or index of an explained class; the first target by default.
            style: colours, opacity, cells or contours; with or without a legend.

        Returns:
            uint8 [h,w,3] BGR of the image's own size, to which a legend adds rows below.

        Raises:
            ReciproError: that class was not explained, or there is no image.
        """
        if self.image is None or self.window is None:
            raise ReciproError("A tensor was explained, not an image: nothing to draw onto.")
        position = self._position(target)
        drawn = draw.overlay(self.image, self.maps[position], self.window, style)
        if not style.legend:
            return drawn
        strip = draw.legend(drawn.shape[1], self.targets[position].range, style)
        return np.vstack([drawn, strip])

    def _position(self, target: str | int | None) -> int:
        if target is None:
            return 0
        indices = [each.index for each in self.targets]
        if isinstance(target, str):
            target = indices[find_class(target, [each.label or "" for each in self.targets])]
        if target not in indices:
            raise ReciproError(f"Class {target} was not explained; these were: {indices}.")
        return indices.index(target)
