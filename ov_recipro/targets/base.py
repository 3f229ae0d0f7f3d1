"""What every target offers to the explainer."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ov_recipro.explanation import Target
from ov_recipro.saliency import Floats

Kind = TypeVar("Kind", bound=Target)


class ScoredTarget(Protocol):
    """Something that a model scores: it turns each run's outputs into one score.

    The runs are those of an image, and of its feature map under each mask.
    """

    @property
    def index(self) -> int:
        """The number by which records name the target."""

    @property
    def label(self) -> str | None:
        """Its name, where it has one."""

    def scores(self, outputs: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:
        """Return the score of each run.

        Args:
            outputs: of the runs, [N,values]: a classifier's logits [N,classes], an embedding's
                vectors [N,D]; the scores of pixels or positions in a row.
            softmax_terms: a classifier's `saliency.softmax_terms` [N,3], where the graph computes
                them.

        Returns:
            Scores [N], float64.
        """

    def described(self, measured: Target, saliency: Floats, raw: Floats) -> Target:
        """Return the target's record.

        Args:
            measured: what every target has.
            saliency: its map [H,W], 0..1; raw: its scores per cell [H,W].
        """


def extended(kind: type[Kind], measured: Target, **more: Any) -> Kind:
    """Return a target's record as another kind of record, which says more."""
    fields = {each.name: getattr(measured, each.name) for each in dataclasses.fields(measured)}
    return kind(**fields, **more)
