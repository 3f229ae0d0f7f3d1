"""Classes as targets, and finding them by what users call them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov_recipro.errors import TargetError
from ov_recipro.explanation import Target
from ov_recipro.saliency import Floats, Score, best_classes, target_scores
from ov_recipro.sources.labels import class_index

RANKED = re.compile(r"top([1-9][0-9]{0,8})")
"""What names classes by the order of their scores."""


@dataclass(frozen=True)
class ClassTarget:
    """A class; see `targets.base.ScoredTarget`.

    Attributes:
        index: the class; label: its name, where names are known.
        score: how logits become scores.
    """

    index: int
    label: str | None
    score: Score

    reads = None

    def scores(self, logits: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:
        """Return the class's score in each run, [N]."""
        return target_scores(logits, self.score, [self.index], softmax_terms)[:, 0]

    def described(self, measured: Target, saliency: Floats, raw: Floats) -> Target:  # noqa: ARG002
        """Return what every target has."""
        return measured


def find_classes(
    targets: str | int | Iterable[str | int],
    labels: Sequence[str] | None,
    classes: int,
    logits: npt.NDArray[np.float32] | None = None,
) -> list[int]:
    """Return the class indices that `targets` mean, each once.

    Args:
        targets: a class name or index, or "top1", "top5", ...; or several of these.
        labels: class names in order, where they are known; classes: their number.
        logits: of the classes, [classes], which "top1" and the like refer to; without them these
            are accepted and left out.

    Raises:
        TargetError: there is no such class.
    """
    wanted = [targets] if isinstance(targets, str | int) else list(targets)
    if not wanted:
        raise TargetError("No target to explain was given.")
    found: dict[int, None] = {}
    for target in wanted:
        if isinstance(target, str) and (top := RANKED.fullmatch(target)):
            if logits is not None:
                found.update(dict.fromkeys(best_classes(logits, int(top[1]))))
        else:
            found[class_index(target, labels, classes)] = None
    return list(found)
