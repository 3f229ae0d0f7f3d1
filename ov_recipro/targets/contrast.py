"""Contrast: why one class and not another (Finer-CAM's question, Zhang et al., 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_recipro.errors import TargetError
from ov_recipro.explanation import Prediction, Target
from ov_recipro.saliency import Floats, Score, best_classes
from ov_recipro.targets.base import extended

NEXT = "next"
"""Names the strongest class other than the explained one."""


@dataclass(frozen=True)
class Contrast(Target):
    """The record of a contrast; `score` and `range` are differences of logits.

    Attributes:
        against: the other class, with its logit.
        gamma: its weight.
    """

    against: Prediction | None = None
    gamma: float = 1.0

    @property
    def identity(self) -> Any:
        """What tells it from other targets."""
        return [self.index, None if self.against is None else self.against.index, self.gamma]

    @property
    def name(self) -> str:
        """What tells it from the other targets of an image, in file names."""
        return f"{self.index}-{self.against.index}" if self.against is not None else super().name

    def remarks(self, cells: int, score: Score, mask: str = "cell") -> list[str]:  # noqa: ARG002
        """Return, in words, what speaks against the map; the score is a logit."""
        return super().remarks(cells, "none", mask)


@dataclass(frozen=True)
class ContrastTarget:
    """A class against another: z_c - gamma z_d, with z the logits.

    Attributes:
        index: the class c; label: its name, where names are known.
        against: the other class d, with its logit for the image.
        gamma: the other's weight.
    """

    index: int
    label: str | None
    against: Prediction
    gamma: float = 1.0

    reads = None

    def scores(self, logits: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:  # noqa: ARG002
        """Return the difference of the logits in each run, [N]."""
        pair = np.asarray(logits[:, [self.index, self.against.index]], np.float64)
        return np.asarray(pair[:, 0] - self.gamma * pair[:, 1])

    def described(self, measured: Target, saliency: Floats, raw: Floats) -> Target:  # noqa: ARG002
        """Return the record, with the other class."""
        return extended(Contrast, measured, against=self.against, gamma=self.gamma)


def other_class(index: int, against: int | None, logits: Floats) -> int:
    """Return the class that another is contrasted with.

    Args:
        index: the explained class.
        against: the other; None for the strongest one.
        logits: of the image, [classes].

    Raises:
        TargetError: the two are the same, or there is no other class.
    """
    if len(logits) < 2:
        raise TargetError("The model has one class: there is none to contrast it with.")
    if against is None:
        return next(other for other in best_classes(logits, 2) if other != index)
    if against == index:
        raise TargetError(f"Class {index} can't be contrasted with itself.")
    return against
