"""What every target offers to the explainer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ov_recipro.saliency import Floats


class ScoredTarget(Protocol):
    """Something that a model scores: it turns each run's logits into one score.

    The runs are those of an image, and of its feature map with all cells but one emptied.
    """

    @property
    def index(self) -> int:
        """The number by which records name the target."""

    @property
    def label(self) -> str | None:
        """Its name, where it has one."""

    def scores(self, logits: Floats, softmax_terms: Floats | None) -> npt.NDArray[np.float64]:
        """Return the score of each run.

        Args:
            logits: of the runs, [N,classes].
            softmax_terms: their `saliency.softmax_terms` [N,3], where the graph computes them.

        Returns:
            Scores [N], float64.
        """
