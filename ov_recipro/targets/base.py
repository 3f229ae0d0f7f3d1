"""What every target offers to the explainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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

    @property
    def reads(self) -> npt.NDArray[np.int64] | None:
        """The numbers among a run's outputs that it is scored by, ascending; None for all."""

    def scores(self, outputs: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:
        """Return the score of each run.

        Args:
            outputs: of the runs, [N,values]: a classifier's logits [N,classes], an embedding's
                vectors [N,D]; the scores of pixels or positions in a row; or what it `reads`.
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


def measured(
    target: ScoredTarget, score: float, raw: Floats, saliency: Floats, **more: Any
) -> Target:
    """Return what is recorded of every target.

    Args:
        target: what is explained; score: its score for the image.
        raw: its scores per cell [H,W]; saliency: its map [H,W], 0..1.
        more: further fields of `Target`.
    """
    return Target(
        index=target.index,
        label=target.label,
        score=score,
        range=(float(raw.min()), float(raw.max())),
        distinct_values=len(set(raw.ravel().tolist())),
        flat=bool(saliency.min() == saliency.max()),
        **more,
    )


def read_by(targets: Sequence[ScoredTarget]) -> npt.NDArray[np.int64] | None:
    """Return the numbers of a run's outputs that any of the targets reads; None for all."""
    read = [target.reads for target in targets]
    if not read or any(each is None for each in read):
        return None
    return np.unique(np.concatenate([each for each in read if each is not None]))


def scores_of(
    targets: Sequence[ScoredTarget],
    outputs: Floats,
    softmax_terms: Floats | None,
    columns: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float64]:
    """Return the scores of targets in each run, [N,T].

    Args:
        targets: what is scored.
        outputs: see `ScoredTarget.scores`; softmax_terms: likewise.
        columns: which of the numbers the outputs hold, ascending; None for all.
    """
    found = []
    for target in targets:
        places = target.reads
        if places is not None and columns is not None:
            places = np.searchsorted(columns, places)
        found.append(
            target.scores(outputs if places is None else outputs[:, places], softmax_terms)
        )
    return np.stack(found, axis=1)


def extended(kind: type[Kind], measured: Target, **more: Any) -> Kind:
    """Return a target's record as another kind of record, which says more."""
    fields = {each.name: getattr(measured, each.name) for each in dataclasses.fields(measured)}
    return kind(**fields, **more)
