"""Positions of a sequence: why this letter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_recipro.errors import TargetError
from ov_recipro.explanation import Target
from ov_recipro.saliency import Floats, Score, class_scores
from ov_recipro.targets.base import extended


@dataclass(frozen=True)
class Position(Target):
    """The record of a class at one position of a sequence."""

    position: int = 0

    @property
    def identity(self) -> Any:
        """What tells it from other targets."""
        return [self.index, self.position]

    @property
    def name(self) -> str:
        """What tells it from the other targets of an image, in file names."""
        return f"{self.position}-{self.index}"


@dataclass(frozen=True)
class PositionTarget:
    """The score of a class at one position.

    Attributes:
        index: the class; label: its name, where names are known.
        score: how logits become scores.
        position: counted from 0; count: of all positions.
    """

    index: int
    label: str | None
    score: Score
    position: int
    count: int

    reads = None

    def scores(self, outputs: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:  # noqa: ARG002
        """Return the class's score at the position in each run, [N]."""
        logits = outputs.reshape(len(outputs), self.count, -1)[:, self.position]
        return class_scores(logits, self.score)[:, self.index]

    def described(self, measured: Target, saliency: Floats, raw: Floats) -> Target:  # noqa: ARG002
        """Return the record, with the position."""
        return extended(Position, measured, position=self.position)


def check_position(position: int | None, logits: Floats, labels: tuple[str, ...] | None) -> int:
    """Return the position that was asked for.

    Args:
        position: counted from 0, or from the end if it is negative.
        logits: of the image, [T,K].
        labels: the classes' names, where they are known.

    Raises:
        TargetError: there is no such position, or none was named.
    """
    count = len(logits)
    if position is None:
        best = logits.argmax(axis=-1).tolist()
        usual = max(set(best), key=best.count)  # a blank, in most models
        read = [
            f"{at} {labels[each] if labels is not None else each}"
            for at, each in enumerate(best)
            if each != usual
        ]
        listed = f"; the model reads: {', '.join(read)}" if read else ""
        raise TargetError(f"Which position, 0 to {count - 1}? Name it with --position{listed}.")
    if not -count <= position < count:
        raise TargetError(f"There is no position {position}: the model has 0 to {count - 1}.")
    return position % count
